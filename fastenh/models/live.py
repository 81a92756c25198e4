"""The causal form of ``dpt_complex`` hop by hop: samples and a state go in, samples and the next state come out."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.errors import ProcessingError
from fastenh.models.dpt_complex import DPTComplex, FoldedDPTComplex
from fastenh.models.frontend import BINS, N_FFT, SAMPLE_RATE, SpectralModel
from fastenh.models.level import before_sound, running_level
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.compression import compress, expand, multiply

HOP = N_FFT // 2
_MANY = 8  # frames from which on copies of the rings cost less than two products instead of one
_STRIDE = 4  # bins a band of these convolutions
_Rings = tuple[Tensor, Tensor]  # keys and values
_NEAR = 2  # frames before the present one under the convolutions around the dual path


class LiveModelError(ProcessingError, ValueError):
    """A model that looks ahead, or that has no form hop by hop."""


@dataclass
class LiveState:
    """All that a later hop needs of those before it, for B sounds side by side. None of it grows.

    ``normed``, ``keys`` and ``values`` hold one tensor for each layer over time. Keys and values are rings: frame n is
    at place n % (history - 1), and ``frames`` counts all that have been heard.
    """

    samples: Tensor  # (B, 256): the second half of the last frame
    overlap: Tensor  # (B, 256): what the last frame leaves for the hop that comes out next
    level: Tensor  # (B, 2, 2): of ``running_level``
    compressed: Tensor  # (B, 3, 2, 256): what the first convolution saw of the last two frames
    normed: tuple[Tensor, ...]  # (B, taps - 1, bands, channels)
    keys: tuple[Tensor, ...]  # (B * bands * heads, history - 1, width), written in place
    values: tuple[Tensor, ...]  # likewise
    frames: Tensor  # (1,), int64
    decoded: Tensor  # (B, conv_channels, 2, 64): of the last two frames, in front of the mask

    def copy(self) -> LiveState:
        """A state that may go on from here while this one stays."""
        return deepcopy(self)


class LiveModel(nn.Module):
    """A causal ``dpt_complex`` for sound that is still being made: hops of 256 samples, as many at a time as wanted.

    What comes out is 256 samples behind what goes in, which with the hop itself is 32 ms, and is what the model gives
    for the whole recording, in whatever portions the hops come: hop k of it comes out when hop k + 1 has gone in.
    A state that was given is used up, since its rings, megabytes, are written in place: ``LiveState.copy`` keeps one.
    Raises ``LiveModelError`` for a model that looks ahead.
    """

    inverse_window: Tensor

    def __init__(self, model: SpectralModel) -> None:
        super().__init__()
        core = model.core
        if not isinstance(core, DPTComplex) or core.plan.ahead or core.plan.taps_ahead or not core.plan.history:
            raise LiveModelError("this model looks ahead and cannot run live; dpt_complex-live can")
        if model.frontend.hop != HOP:
            raise LiveModelError(f"a live model has a hop of {HOP} samples, not {model.frontend.hop}")
        self.core = core.eval().folded()
        self.frontend = model.frontend
        window = self.frontend.window
        squared = window[:HOP].square() + window[HOP:].square()
        self.register_buffer("inverse_window", window / squared.repeat(2))
        self._kept: _Weights | None = None

    def start(self, batch: int = 1) -> LiveState:
        """The state before any sound: a recording's whole pass has zeros in front, too."""
        w, plan = self._weights(), self.core.plan
        zeros = self.inverse_window.new_zeros
        bands, channels = w.positions.shape
        taps, wide = len(w.taps[0][2]), len(w.front[0])
        ring = batch * bands * plan.heads, plan.history - 1, channels // plan.heads
        return LiveState(
            samples=zeros(batch, HOP),
            overlap=zeros(batch, HOP),
            level=before_sound(batch, self.inverse_window.device),
            compressed=zeros(batch, 3, _NEAR, BINS - 1),
            normed=tuple(zeros(batch, taps - 1, bands, channels) for _ in w.taps),
            keys=tuple(zeros(ring) for _ in w.taps),
            values=tuple(zeros(ring) for _ in w.taps),
            frames=zeros(1, dtype=torch.int64),
            decoded=zeros(batch, wide, _NEAR, (BINS - 1) // _STRIDE),
        )

    def _weights(self) -> _Weights:
        """As the hops want them, made once."""
        if self._kept is None:
            self._kept = _Weights(self.core)
        return self._kept

    def _apply(self, *arguments: Any, **options: Any) -> LiveModel:
        self._kept = None
        return super()._apply(*arguments, **options)

    @torch.inference_mode()
    def forward(self, samples: Tensor, state: LiveState) -> tuple[Tensor, LiveState]:
        """(B, hops * 256) at 16 kHz and the state they meet -> as many samples, a hop behind, and the next state."""
        heard = torch.cat([state.samples, samples], 1)
        spectrum = torch.fft.rfft(heard.unfold(1, N_FFT, HOP) * self.frontend.window).transpose(1, 2)
        level, level_state = running_level(self.frontend.power(spectrum), state.level, SAMPLE_RATE / HOP)
        level = level.unsqueeze(1)
        masked, following = self.advance(torch.view_as_real(spectrum / level), state)
        enhanced = torch.view_as_complex(masked) * level
        first, second = (torch.fft.irfft(enhanced.transpose(1, 2), N_FFT) * self.inverse_window).chunk(2, 2)
        made = first + torch.cat([state.overlap.unsqueeze(1), second[:, :-1]], 1)
        following.samples, following.overlap, following.level = heard[:, -HOP:], second[:, -1], level_state
        return made.flatten(1), following

    def advance(self, spectra: Tensor, state: LiveState) -> tuple[Tensor, LiveState]:
        """The core alone: real pairs (B, 257, T, 2), scaled to the running level -> masked ones, and the next state.

        What of the state belongs to the waveform stays as it is. Around the dual path activations are (B, C, T, F),
        which the convolutions of a processor take as they are, in it (B, T, F, C).
        """
        w, plan = self._weights(), self.core.plan
        pairs, magnitude = compress(torch.view_as_complex(spectra)[:, :-1], plan.compression)
        seen = torch.cat([pairs, magnitude.unsqueeze(-1)], -1).permute(0, 3, 1, 2)
        near = torch.cat([state.compressed, seen], 2)
        x = F.silu(F.conv2d(near, *w.front, stride=(1, _STRIDE), padding=(0, 2)))
        skips = [x]
        for weight, bias in w.encoder:
            x = F.silu(F.conv2d(x, weight, bias, padding=(0, 1)))
            skips.append(x)
        y = torch.matmul(torch.matmul(x, w.to_bands).permute(0, 2, 3, 1), w.enter) + w.positions
        y, normed = self._dual_path(y, state)
        x = torch.matmul((torch.matmul(y, w.leave) + w.leave_bias).permute(0, 3, 1, 2), w.from_bands)
        for number, (weight, bias) in enumerate(w.mixes):
            x = F.silu(F.conv2d(torch.cat([x, skips.pop()], 1), weight, bias))
            if number < len(w.decoder):
                x = F.silu(F.conv2d(x, w.decoder[number][0], w.decoder[number][1], padding=(0, 1)))
        decoded = torch.cat([state.decoded, x], 2)
        mask = F.conv_transpose2d(decoded, *w.head, stride=(1, _STRIDE), padding=(_NEAR, 2)).permute(0, 2, 3, 1)
        masked = F.pad(multiply(mask, pairs), (0, 0, 0, 1))
        following = LiveState(
            samples=state.samples,
            overlap=state.overlap,
            level=state.level,
            compressed=near[:, :, -_NEAR:],
            normed=normed,
            keys=state.keys,
            values=state.values,
            frames=state.frames + spectra.shape[2],
            decoded=decoded[:, :, -_NEAR:],
        )
        return torch.view_as_real(expand(masked, plan.compression)), following

    def _dual_path(self, y: Tensor, state: LiveState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, T, F, C) -> the same, and what follows of ``state.normed``; its rings are written."""
        w, plan = self._weights(), self.core.plan
        frames, normed = y.shape[1], []
        places = plan.history - 1
        number = (state.frames + torch.arange(max(0, frames - places), frames, device=y.device)) % max(places, 1)
        unseen = _unseen(state.frames, frames, places)
        for place, taps in enumerate(w.taps):
            y, last = _norm_taps(y, taps, state.normed[place])
            normed.append(last)
            rings = state.keys[place], state.values[place]
            y, present = _layer(y, w.layers[2 * place], partial(_over_time, rings=rings, unseen=unseen))
            for ring, new in zip(rings, present, strict=True):
                ring.index_copy_(1, number, new[:, max(0, frames - places) :])
            y, _ = _layer(y, w.layers[2 * place + 1], partial(_over_bands, heads=plan.heads))
        return y, tuple(normed)


class _Weights:
    """Those of the core, in the layouts of ``LiveModel.advance``."""

    def __init__(self, core: FoldedDPTComplex) -> None:
        weights, plan = core.weights(), core.plan

        def pairs(name: str) -> list[tuple[Tensor, Tensor]]:
            halves = zip(weights[name][::2], weights[name][1::2], strict=True)
            return [(weight.view(*weight.shape[:2], 1, -1), bias) for weight, bias in halves]

        front, front_bias = weights["front"]
        self.front = front.transpose(2, 3).contiguous(), front_bias
        self.encoder, self.mixes, self.decoder = pairs("encoder"), pairs("mixes"), pairs("decoder")
        to_bands, enter, enter_bias, positions = weights["enter"]
        self.to_bands, self.enter = to_bands.T.contiguous(), enter.T.contiguous()
        self.positions = positions + enter_bias
        leave, self.leave_bias, from_bands = weights["leave"]
        self.leave, self.from_bands = leave.T.contiguous(), from_bands.T.contiguous()
        head, head_bias = weights["head"]
        self.head = head.transpose(2, 3).contiguous(), head_bias
        self.layers = [_transposed(AxisLayerWeights(*weights[f"layer{n}"]), plan.heads) for n in range(plan.layers)]
        taps = (weights[f"taps{number}"] for number in range(0, plan.layers, 2))
        self.taps = [(norm, norm_bias, kernel.T.contiguous(), bias) for norm, norm_bias, kernel, bias in taps]


def _transposed(w: AxisLayerWeights, heads: int) -> AxisLayerWeights:
    """Matrices for a product from the right; the queries bring the scale of the scores along."""
    channels = len(w.norm1_weight)
    scale = torch.ones_like(w.qkv_bias)
    scale[:channels] = (channels // heads) ** -0.5
    scaled = w._replace(qkv_weight=w.qkv_weight * scale.unsqueeze(1), qkv_bias=w.qkv_bias * scale)
    return AxisLayerWeights(*(tensor.T.contiguous() if tensor.ndim == 2 else tensor for tensor in scaled))


def _layer(
    x: Tensor, w: AxisLayerWeights, attention: Callable[[Tensor], tuple[Tensor, _Rings]]
) -> tuple[Tensor, _Rings]:
    """``axis_layer`` of (B, T, F, C) with weights as ``_transposed``; ``attention`` takes (B, T, F, 3C)."""
    shape, channels = x.shape, x.shape[-1:]
    flat = x.reshape(-1, *channels)
    qkv = torch.addmm(w.qkv_bias, F.layer_norm(flat, channels, w.norm1_weight, w.norm1_bias), w.qkv_weight)
    attended, present = attention(qkv.view(*shape[:3], -1))
    flat = torch.addmm(w.out_bias, attended.reshape(flat.shape), w.out_weight).add_(flat)
    normed = F.layer_norm(flat, channels, w.norm2_weight, w.norm2_bias)
    hidden = torch.addmm(w.up_bias, normed, w.up_weight).relu_()
    return torch.addmm(w.down_bias, hidden, w.down_weight).add_(flat).view(shape), present


def _norm_taps(x: Tensor, weights: tuple[Tensor, ...], before: Tensor) -> tuple[Tensor, Tensor]:
    """``norm_taps`` of the frames x behind the normalised frames ``before``, and the last of these frames."""
    norm_weight, norm_bias, taps, bias = weights  # (taps, C)
    near = torch.cat([before, F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias)], 1)
    if x.shape[1] == 1:
        moved = (near * taps.unsqueeze(1)).sum(1, keepdim=True) + bias
    else:
        kernel = taps.T.unsqueeze(1).unsqueeze(-1)
        moved = F.conv2d(near.permute(0, 3, 1, 2), kernel, bias, groups=taps.shape[1]).permute(0, 2, 3, 1)
    return x + moved, near[:, near.shape[1] - before.shape[1] :]


def _over_time(qkv: Tensor, rings: _Rings, unseen: Tensor) -> tuple[Tensor, _Rings]:
    """Attention of the frames (B, T, F, 3C) over the rings and each other -> (B, T, F, C), and their keys and values.

    unseen: (T, places + T), 0 where a frame sees another one and minus infinity where not.
    """
    b, t, f, packed = qkv.shape
    width, places = rings[0].shape[2], rings[0].shape[1]
    heads = packed // (3 * width)
    q, k, v = qkv.view(b, t, f, 3, heads, width).permute(3, 0, 2, 4, 1, 5).reshape(3, -1, t, width)
    if t >= _MANY:
        keys, values = torch.cat([rings[0], k], 1), torch.cat([rings[1], v], 1)
        # four dimensions, or PyTorch takes a slower form
        q, keys, values = (part.unflatten(0, (-1, heads)) for part in (q, keys, values))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=unseen, scale=1.0).flatten(0, 1)
    else:
        scores = torch.cat([torch.bmm(q, rings[0].transpose(1, 2)), torch.bmm(q, k.transpose(1, 2))], 2)
        past, now = scores.add_(unseen).softmax(-1).split([places, t], 2)
        out = torch.bmm(past, rings[1]) + torch.bmm(now, v)
    return out.view(b, f, heads, t, width).permute(0, 3, 1, 2, 4).reshape(b, t, f, -1), (k, v)


def _over_bands(qkv: Tensor, heads: int) -> tuple[Tensor, _Rings]:
    """Attention of the bands of each frame, (B, T, F, 3C) -> (B, T, F, C)."""
    b, t, f, packed = qkv.shape
    q, k, v = qkv.view(b * t, f, 3, heads, packed // (3 * heads)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return attended.transpose(1, 2).reshape(b, t, f, -1), (k, v)


def _unseen(frames: Tensor, count: int, places: int) -> Tensor:
    """(count, places + count): 0 where a frame (row) sees a place of the rings or a frame beside it, else -inf."""
    row = torch.arange(count, device=frames.device).unsqueeze(1)
    age = (frames - 1 - torch.arange(places, device=frames.device)) % max(places, 1) + 1  # seen from row 0
    past = (age + row <= places) & (age <= frames)
    between = row - row.T
    seen = torch.cat([past, (between >= 0) & (between <= places)], 1)
    return torch.zeros(seen.shape, device=frames.device).masked_fill(~seen, -math.inf)
