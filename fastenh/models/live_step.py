"""One hop of ``LiveModel`` for one sound, in the form that a runtime without PyTorch computes quickest.

The results are those of ``LiveModel``. What differs: convolutions keep channels in front of bands, the frames they see
count as channels, real pairs take the place of complex numbers, and of the keys and values, 6 MB that would be copied
in every hop, only those of the present frame come out. Who calls it puts them into the rings, which it reads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.models.frontend import BINS, N_FFT, SAMPLE_RATE
from fastenh.models.level import ATTACK, RELEASE, SILENCE_RMS
from fastenh.models.live import HOP, LiveModel, LiveModelError
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.compression import EPS

_NEAR = 3  # frames under the convolutions around the dual path
_PHASES = 4  # bins of the mask a band of the last convolution


class LiveStep(nn.Module):
    """256 samples and the state that they meet -> 256 samples, a hop behind, and what follows of the state.

    ``state`` says the names and shapes of the state, zeros before any sound. ``rings`` are those of them of which only
    the newest frame comes out (C, 1, width): it belongs at place ``hop % places`` of the ring (C, places, width) before
    the next hop, with hops counted from 0. All others are replaced by what comes out. All numbers are float32.
    """

    window: Tensor
    inverse_window: Tensor
    fading: Tensor
    edges: Tensor

    def __init__(self, model: LiveModel) -> None:
        super().__init__()
        weights, self.plan = model.core.weights(), model.core.plan
        if self.plan.history < 2:
            raise LiveModelError("a model whose attention sees one frame alone needs no step of its own")
        self._sizes: dict[str, int] = {}  # how many tensors of a name are kept
        time_layers = range(0, self.plan.layers, 2)
        bands, channels = weights["enter"][3].shape
        wide, taps = weights["enter"][1].shape[1], weights["taps0"][2].shape[1]
        ring = bands * self.plan.heads, self.plan.history - 1, channels // self.plan.heads
        self.rings = {f"{kind}{n}": ring for kind in ("keys", "values") for n in range(len(time_layers))}
        self.state: dict[str, tuple[int, ...]] = {
            "heard": (1, HOP),
            "overlap": (1, HOP),
            "level": (2, 2),
            "frames": (1,),
            "compressed": (_NEAR - 1, 3, BINS - 1),
            "decoded": (1, (_NEAR - 1) * wide, (BINS - 1) // _PHASES),
            **{f"normed{n}": (taps - 1, bands, channels) for n in range(len(time_layers))},
            **self.rings,
        }
        rates = torch.tensor([1 / ATTACK, 1 / RELEASE]) * (-HOP / SAMPLE_RATE)
        edges = torch.full((BINS,), 2.0)
        edges[0] = edges[-1] = 1.0  # of the bins of a real signal these two stand for themselves alone
        self.register_buffer("window", model.frontend.window.clone())
        self.register_buffer("inverse_window", model.inverse_window.clone())
        self.register_buffer("fading", torch.exp(rates).unsqueeze(1))
        self.register_buffer("edges", edges.unsqueeze(1))
        self.power_of_window = float(N_FFT * model.frontend.window.square().sum())
        front, front_bias = weights["front"]
        self._keep("front", front.permute(0, 3, 1, 2).flatten(1, 2), front_bias)
        for name in ("encoder", "decoder"):
            self._keep(name, *weights[name])
        to_bands, enter, enter_bias, positions = weights["enter"]
        self._keep("enter", to_bands.T, enter.T, positions + enter_bias)
        leave, leave_bias, from_bands = weights["leave"]
        self._keep("leave", leave, leave_bias.unsqueeze(1), from_bands.T)
        self._keep("mixes", *(w.unsqueeze(-1) if w.ndim == 2 else w for w in weights["mixes"]))
        self._keep("head", _phases(weights["head"][0]), weights["head"][1].repeat_interleave(_PHASES))
        for number in range(self.plan.layers):
            self._keep(f"layer{number}", *_scaled(AxisLayerWeights(*weights[f"layer{number}"]), self.plan.heads))
        for number in time_layers:
            norm_weight, norm_bias, kernel, bias = weights[f"taps{number}"]
            self._keep(f"taps{number}", norm_weight, norm_bias, kernel.T.unsqueeze(1), bias)

    def _keep(self, name: str, *tensors: Tensor) -> None:
        self._sizes[name] = len(tensors)
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"{name}_{index}", tensor.detach().float().contiguous().clone())

    def _kept(self, name: str) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"{name}_{index}") for index in range(self._sizes[name]))

    def forward(self, waveform: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(1, 256) and the state in the order of ``self.state`` -> (1, 256) and what follows, in the same order."""
        given = dict(zip(self.state, state, strict=True))
        frame = torch.cat([given["heard"], waveform], 1) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frame))[0]  # (257, 2)
        power = (spectrum.square() * self.edges).sum((0, 1), keepdim=True) / self.power_of_window
        sums = given["level"] * self.fading + torch.cat([power, torch.ones_like(power)], 1)
        level = (sums[:, :1] / sums[:, 1:]).amax(0, keepdim=True).clamp_min(SILENCE_RMS**2).sqrt()
        masked, following = self._core((spectrum[:-1] / level).T, given)
        # the real part of the inverse of half of a spectrum, doubled, is that of the whole
        half = F.pad(masked.T * (self.edges[:-1] * level), (0, 0, 0, BINS - 1)).unsqueeze(0)
        made = torch.view_as_real(torch.fft.ifft(torch.view_as_complex(half)))[..., 0]
        first, second = (made * self.inverse_window).split(HOP, 1)
        enhanced = first + given["overlap"]
        following |= {
            "heard": waveform + 0.0,  # as an output of its own
            "overlap": second,
            "level": sums,
        }
        return enhanced, *(following[name] for name in self.state)

    def _core(self, pairs: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(2, 256) -> (2, 256)."""
        power = self.plan.compression
        squared = pairs.square().sum(0, keepdim=True) + EPS
        magnitude = squared ** (power / 2)
        pairs = pairs * (magnitude / squared.sqrt())
        near = torch.cat([given["compressed"], torch.cat([pairs, magnitude]).unsqueeze(0)])
        x, following = self._dual_path(near.flatten(0, 1).unsqueeze(0), given)
        decoded = torch.cat([given["decoded"], x], 1)
        head, head_bias = self._kept("head")
        mask = F.conv1d(decoded, head, head_bias, padding=1)  # (1, 2 * 4, 64)
        mask = mask.unflatten(1, (2, _PHASES)).transpose(2, 3).reshape(2, BINS - 1)
        (a, b), (c, d) = mask.split(1), pairs.split(1)
        masked = torch.cat([a * c - b * d, a * d + b * c])
        squared = masked.square().sum(0, keepdim=True) + EPS
        following |= {"compressed": near[1:], "decoded": decoded[:, x.shape[1] :]}
        return masked * squared ** ((1 / power - 1) / 2), following

    def _dual_path(self, near: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(1, 3 frames * 3, 256) -> (1, 32, 64)."""
        front, front_bias = self._kept("front")
        x = F.silu(F.conv1d(near, front, front_bias, stride=_PHASES, padding=2))
        skips = [x]
        encoder = self._kept("encoder")
        for weight, bias in zip(encoder[::2], encoder[1::2], strict=True):
            x = F.silu(F.conv1d(x, weight, bias, padding=1))
            skips.append(x)
        to_bands, enter, positions = self._kept("enter")
        y = (x[0] @ to_bands).T @ enter + positions  # (32 bands, 64)
        places = self.plan.history - 1
        # the present frame comes last; a place is heard from once so many hops have filled it
        unheard = torch.where(torch.arange(places) < given["frames"], 0.0, -math.inf)
        unheard = torch.cat([unheard, torch.zeros(1)])
        following = {"frames": (given["frames"] + 1).clamp_max(places)}
        for number in range(self.plan.layers):
            if number % 2:
                y, _ = self._layer(y, number)
                continue
            place = number // 2
            y, following[f"normed{place}"] = self._taps(y, number, given[f"normed{place}"])
            past = given[f"keys{place}"], given[f"values{place}"], unheard
            y, (following[f"keys{place}"], following[f"values{place}"]) = self._layer(y, number, past)
        leave, leave_bias, from_bands = self._kept("leave")
        x = ((leave @ y.T + leave_bias) @ from_bands).unsqueeze(0)
        mixes, decoder = self._kept("mixes"), self._kept("decoder")
        for step, skip in enumerate(reversed(skips)):
            x = F.silu(F.conv1d(torch.cat([x, skip], 1), mixes[2 * step], mixes[2 * step + 1]))
            if step < len(skips) - 1:
                x = F.silu(F.conv1d(x, decoder[2 * step], decoder[2 * step + 1], padding=1))
        return x, following

    def _taps(self, y: Tensor, number: int, before: Tensor) -> tuple[Tensor, Tensor]:
        norm_weight, norm_bias, taps, bias = self._kept(f"taps{number}")
        near = torch.cat([before, F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias).unsqueeze(0)])
        return y + ((near * taps).sum(0) + bias), near[1:]

    def _layer(
        self, y: Tensor, number: int, past: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(bands, C); over time behind the ``past`` keys and values, with what masks their scores, else over bands."""
        w = AxisLayerWeights(*self._kept(f"layer{number}"))
        heads, channels = self.plan.heads, y.shape[-1:]
        qkv = F.layer_norm(y, channels, w.norm1_weight, w.norm1_bias) @ w.qkv_weight + w.qkv_bias
        if past is None:
            q, k, v = qkv.unflatten(1, (3 * heads, -1)).transpose(0, 1).split(heads)  # (heads, bands, width)
            attended = ((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(0, 1).reshape(y.shape)
        else:
            q, k, v = (part.reshape(-1, 1, y.shape[1] // heads) for part in qkv.split(y.shape[1], 1))
            keys, values, unheard = past
            scores = torch.cat([q @ keys.transpose(1, 2), (q * k).sum(-1, keepdim=True)], 2) + unheard
            shares, present = scores.softmax(-1).split([keys.shape[1], 1], 2)
            attended = (shares @ values + present * v).reshape(y.shape)
        y = y + (attended @ w.out_weight + w.out_bias)
        hidden = (F.layer_norm(y, channels, w.norm2_weight, w.norm2_bias) @ w.up_weight + w.up_bias).relu()
        return y + (hidden @ w.down_weight + w.down_bias), (k, v)


def _phases(weight: Tensor) -> Tensor:
    """A transposed convolution (C, 2, 8 bins, 3 frames) over bins, with a stride of 4 and 2 bins of padding, as a plain
    one over bands: (2 * 4 bins of a band, 3 frames * C, 3 bands)."""
    channels, pair, _, frames = weight.shape
    plain = weight.new_zeros(pair, _PHASES, frames, channels, 3)
    for phase in range(_PHASES):
        for band, shift in enumerate((1, 0, -1)):  # the band before gives its last bins
            tap = phase + 2 + _PHASES * shift
            if 0 <= tap < weight.shape[2]:
                plain[:, phase, :, :, band] = weight[:, :, tap].permute(1, 2, 0).flip(1)
    return plain.flatten(0, 1).flatten(1, 2)


def _scaled(w: AxisLayerWeights, heads: int) -> AxisLayerWeights:
    """Matrices for a product from the right, and queries that bring the scale of the scores along."""
    channels = len(w.norm1_weight)
    scale = torch.ones(3 * channels)
    scale[:channels] = 1 / math.sqrt(channels // heads)
    matrices = w._replace(qkv_weight=w.qkv_weight * scale.unsqueeze(1), qkv_bias=w.qkv_bias * scale)
    return AxisLayerWeights(*(tensor.T if tensor.ndim == 2 else tensor for tensor in matrices))
