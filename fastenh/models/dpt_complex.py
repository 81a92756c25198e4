"""The narrow dual-path transformer with a complex mask: few bands, few channels, compressed spectra."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastenh_kernels
from fastenh.models.batch_norm import moments_of_all, processes, update_running
from fastenh.models.blocks import AxisLayer, bias_of, fold_batch_norm
from fastenh_kernels.operations import front_convolution
from fastenh_kernels.shared.compression import compress

_STRIDE = 4  # bins a convolved band


@dataclass(frozen=True)
class DPTComplexConfig:
    channels: int = 64  # of the dual path
    conv_channels: int = 32  # of the convolutions along frequency around it
    convolutions: int = 2  # on either side of the dual path
    bands: int = 32
    heads: int = 2
    feed_forward: int = 128
    blocks: int = 3
    taps: int = 7  # frames under the depthwise convolution before attention over time
    dropout: float = 0.0
    compression: float = 0.3  # the power of the magnitudes that are seen and masked
    causal: bool = False  # no convolution looks ahead
    history: int = 0  # frames that attention over time sees, the present one included; 0 for the whole window
    hop: int = 256


class DPTComplex(nn.Module):
    """Core of ``dpt_complex``: attention over time, then over bands, between convolutions along frequency.

    The spectrum is compressed (|X|^0.3, its phase kept) and masked in that domain, so the result is not
    ``mask * X``. The bin at half of the sampling rate is left out and comes back as zero.
    """

    layers: Any  # a ModuleList, which promises no more than modules, of TimeLayer and AxisLayer in turn
    encoder: Any  # likewise, of FrequencyConv, as the next two
    decoder: Any
    mix: Any

    def __init__(self, config: DPTComplexConfig) -> None:
        super().__init__()
        c, wide = config.channels, config.conv_channels
        self.compression = config.compression
        self.frames = (2, 0) if config.causal else (1, 1)  # of padding around the convolutions over 3 frames
        self.front = nn.Conv2d(3, wide, (8, 3), stride=(_STRIDE, 1), padding=(2, 0), bias=False)
        self.front_norm = nn.BatchNorm2d(wide)
        self.encoder = nn.ModuleList(FrequencyConv(wide, wide, 3) for _ in range(config.convolutions))
        to_bands, from_bands = band_matrices(config.bands)
        self.to_bands, self.from_bands = nn.Parameter(to_bands), nn.Parameter(from_bands)
        self.enter, self.leave = nn.Linear(wide, c), nn.Linear(c, wide)
        self.positions = nn.Parameter(torch.zeros(config.bands, c))
        self.layers = nn.ModuleList()
        for _ in range(config.blocks):
            self.layers.append(TimeLayer(config))
            self.layers.append(AxisLayer(c, config.heads, config.feed_forward, config.dropout, "frequency"))
        self.plan = Plan(
            len(self.layers),
            config.heads,
            0 if config.causal else config.taps // 2,
            config.history,
            config.compression,
            self.frames[1],
        )
        self.mix = nn.ModuleList(FrequencyConv(2 * wide, wide, 1) for _ in range(config.convolutions + 1))
        self.decoder = nn.ModuleList(FrequencyConv(wide, wide, 3) for _ in range(config.convolutions))
        self.head = nn.ConvTranspose2d(wide, 2, (8, 3), stride=(_STRIDE, 1), padding=(2, 0))
        self._initialise()

    def _initialise(self) -> None:
        """Quiet residual branches, and a mask that begins near one half: training starts from a plain attenuator."""
        with torch.no_grad():
            for layer in self.layers:
                layer = layer.attention if isinstance(layer, TimeLayer) else layer
                layer.out.weight.mul_(0.5)
                layer.down.weight.mul_(0.5)
            self.head.weight.mul_(0.3)
            bias_of(self.head).copy_(torch.tensor([0.5, 0.0]))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        if not self.training:
            return enhance(spectrum, self.prepared(), self.plan)
        if front_convolution.on_kernels(spectrum, self.front.weight):
            x = self._normalised_late(spectrum)
        else:
            x = self._normalised(spectrum)
        ahead, weight, bias = self.frames[1], self.head.weight, bias_of(self.head)
        return fastenh_kernels.compressed_mask(x, weight, bias, spectrum, self.compression, ahead)

    def _normalised(self, spectrum: Tensor) -> Tensor:
        """(B, T, F, C) for the mask, by PyTorch's convolutions and batch norms."""
        compressed, magnitude = compress(spectrum[:, :-1], self.compression)
        x = F.pad(torch.cat([compressed, magnitude.unsqueeze(-1)], -1), (0, 0, 0, 0, *self.frames))
        x = F.silu(normalise(self.front_norm, convolve(self.front, x)))
        skips = [x]
        for convolution in self.encoder:
            x = convolution(x)
            skips.append(x)
        y = self.enter(torch.matmul(self.to_bands, x)) + self.positions
        for layer in self.layers:
            y = layer(y)
        x = torch.matmul(self.from_bands, self.leave(y))
        for mix, convolution in zip(self.mix, self.decoder, strict=False):
            x = convolution(mix(torch.cat([x, skips.pop()], -1)))
        return self.mix[-1](torch.cat([x, skips.pop()], -1))

    def _normalised_late(self, spectrum: Tensor) -> Tensor:
        """The same where kernels normalise what they read, so that nothing but the convolutions' results is stored."""
        weight, compression = self.front.weight, self.compression
        x = Late.of(self.front_norm, *fastenh_kernels.front_convolution(spectrum, weight, compression, self.frames[1]))
        skips = []
        for convolution in self.encoder:
            x, skip = convolution.late_and_skip(x)
            skips.append(skip)
        positions = self.enter.bias + self.positions
        y, rows = fastenh_kernels.band_map(*x, self.to_bands, self.enter.weight, positions, True)
        skips.append(Late(rows, x.affine))
        for layer in self.layers:
            y = layer(y)
        added = self.from_bands.sum(1, keepdim=True) * self.leave.bias
        x = Late(fastenh_kernels.band_map(y, None, self.from_bands, self.leave.weight, added), None)
        for mix, convolution in zip(self.mix, self.decoder, strict=False):
            x = convolution.late(mix.late(x, skips.pop()))
        return self.mix[-1].late(x, skips.pop()).activated()

    def folded(self, dtype: torch.dtype = torch.float32) -> FoldedDPTComplex:
        """The same in evaluation, its weights prepared once."""
        return FoldedDPTComplex(self, dtype)

    def prepared(self) -> dict[str, tuple[Tensor, ...]]:
        """The weights by operation and in its order, batch norms folded."""

        def folded(convolutions: Iterable[Any]) -> tuple[Tensor, ...]:
            pairs = [fold_batch_norm(convolution.conv, convolution.norm) for convolution in convolutions]
            return tuple(tensor for weight, bias in pairs for tensor in (weight.squeeze(-1), bias))

        mixes = folded(self.mix)
        layers: dict[str, tuple[Tensor, ...]] = {}
        for number, layer in enumerate(self.layers):
            if isinstance(layer, TimeLayer):
                layers[f"taps{number}"] = layer.taps_weights()
            layers[f"layer{number}"] = tuple(layer.weights())
        return layers | {
            "front": fold_batch_norm(self.front, self.front_norm),
            "encoder": folded(self.encoder),
            "enter": (self.to_bands, self.enter.weight, self.enter.bias, self.positions),
            "leave": (self.leave.weight, self.leave.bias, self.from_bands),
            "mixes": tuple(tensor.squeeze(-1) if tensor.ndim == 3 else tensor for tensor in mixes),
            "decoder": folded(self.decoder),
            "head": (self.head.weight, bias_of(self.head)),
        }


class FoldedDPTComplex(nn.Module):
    """The core for inference: batch norms folded, in 16 bit the layer norms, too; matrices and kernels in ``dtype``,
    vectors in float32."""

    def __init__(self, core: DPTComplex, dtype: torch.dtype) -> None:
        super().__init__()
        self.plan, self.norms_folded = core.plan, dtype.itemsize == 2
        self.sizes = {}
        with torch.no_grad():
            for name, tensors in core.prepared().items():
                if self.norms_folded and name.startswith("layer"):
                    tensors = fastenh_kernels.AxisLayerWeights(*tensors).folded()
                self.sizes[name] = len(tensors)
                for index, tensor in enumerate(tensors):
                    kept = tensor.detach().to(dtype if tensor.ndim > 1 else torch.float32, copy=True)
                    self.register_buffer(f"{name}_{index}", kept.contiguous())

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        return enhance(spectrum, self.weights(), self.plan, self.norms_folded)

    def weights(self) -> dict[str, tuple[Tensor, ...]]:
        """As ``DPTComplex.prepared`` gives them; in 16 bit those of the layers folded."""
        return {name: tuple(getattr(self, f"{name}_{i}") for i in range(n)) for name, n in self.sizes.items()}


class Plan(NamedTuple):
    """What the forward pass needs to know beside the weights."""

    layers: int
    heads: int
    taps_ahead: int
    history: int
    compression: float
    ahead: int  # frames, of the convolutions around the dual path


def enhance(spectrum: Tensor, weights: dict[str, tuple[Tensor, ...]], plan: Plan, folded: bool = False) -> Tensor:
    """The forward pass in evaluation, with ``weights`` of ``DPTComplex.prepared``.

    folded: those of the layers are as ``AxisLayerWeights.folded`` gives them.
    """
    front, front_bias = weights["front"]
    x = fastenh_kernels.compressed_front(spectrum, front, front_bias, plan.compression, plan.ahead)
    y, *outs = fastenh_kernels.band_encoder(x, weights["encoder"], weights["enter"])
    for number in range(plan.layers):
        layer = fastenh_kernels.AxisLayerWeights(*weights[f"layer{number}"])
        if number % 2:
            y = fastenh_kernels.axis_layer(y, layer, plan.heads, "frequency", 0.0, 0, folded)
        else:
            taps = weights[f"taps{number}"]
            y = fastenh_kernels.time_layer(y, taps, layer, plan.heads, plan.taps_ahead, plan.history, folded)
    skips = (*reversed(outs), x)
    x = fastenh_kernels.band_decoder(y, skips, weights["leave"], weights["mixes"], weights["decoder"])
    head, head_bias = weights["head"]
    return fastenh_kernels.compressed_mask(x, head, head_bias, spectrum, plan.compression, plan.ahead)


class Late(NamedTuple):
    """The result of a convolution, whose batch norm and SiLU wait for whoever reads it."""

    rows: Tensor  # (B, T, F, C)
    affine: Tensor | None  # (2, C), scale and shift of the batch norm; None where neither is to come

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, rows: Tensor, mean: Tensor, var: Tensor) -> Late:
        """By the moments of rows over all processes, which the running moments of ``norm`` follow."""
        mean, var = moments_of_all(mean, var)
        with torch.no_grad():
            update_running(norm, mean, var, processes() * rows.numel() // rows.shape[-1])
        scale = norm.weight * torch.rsqrt(var + norm.eps)
        return cls(rows, torch.stack([scale, norm.bias - mean * scale]))

    def activated(self) -> Tensor:
        """Normalised and activated."""
        assert self.affine is not None
        return fastenh_kernels.affine_silu(self.rows, self.affine)


class FrequencyConv(nn.Module):
    """Convolution over ``taps`` bands of each frame, batch norm, SiLU: (B, T, F, C) -> (B, T, F, C')."""

    def __init__(self, channels: int, out: int, taps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, (taps, 1), padding=(taps // 2, 0), bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(normalise(self.norm, convolve(self.conv, x)))

    def late(self, x: Late, skip: Late | None = None) -> Late:
        """The same of rows that are normalised as they are read, the channels of ``skip`` behind those of x."""
        weight, (rows, affine) = self.conv.weight.squeeze(-1), skip or (None, None)
        return Late.of(self.norm, *fastenh_kernels.band_convolution(x.rows, x.affine, weight, rows, affine))

    def late_and_skip(self, x: Late) -> tuple[Late, Late]:
        """The same without a skip, and x for one who reads it again."""
        weight = self.conv.weight.squeeze(-1)
        *found, rows = fastenh_kernels.band_convolution(x.rows, x.affine, weight, None, None, True)
        return Late.of(self.norm, *found), Late(rows, x.affine)


class TimeLayer(nn.Module):
    """An axis layer over time behind a depthwise convolution over a few frames.

    Without the convolution, attention over time knows no before and after (Chu et al. 2023, "Conditional positional
    encodings for vision transformers").
    """

    def __init__(self, config: DPTComplexConfig) -> None:
        super().__init__()
        c, taps = config.channels, config.taps
        self.ahead = 0 if config.causal else taps // 2
        self.norm = nn.LayerNorm(c)
        self.taps = nn.Conv2d(c, c, (taps, 1), groups=c)
        self.attention = AxisLayer(c, config.heads, config.feed_forward, config.dropout, "time", config.history)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F, C) -> (B, T, F, C)."""
        return self.attention(fastenh_kernels.norm_taps(x, *self.taps_weights(), self.ahead))

    def taps_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights of ``norm_taps``."""
        return self.norm.weight, self.norm.bias, self.taps.weight.flatten(1), bias_of(self.taps)

    def weights(self) -> fastenh_kernels.AxisLayerWeights:
        return self.attention.weights()


def band_matrices(bands: int, rows: int = 256 // _STRIDE) -> tuple[Tensor, Tensor]:
    """(bands, rows), whose rows sum to 1, and (rows, bands), likewise: triangles evenly spaced over ``rows``."""
    place, centre = torch.linspace(0, 1, rows), torch.linspace(0, 1, bands).unsqueeze(1)
    triangles = (1 - (place - centre).abs() * (bands - 1)).clamp_min(0)
    return triangles / triangles.sum(1, keepdim=True), (triangles / triangles.sum(0)).T.contiguous()


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv``, whose weights are (C', C, F taps, T taps), without its bias: (B, T, F, C) -> (B, T', F', C')."""
    weight = conv.weight.transpose(2, 3)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, None, conv.stride[::-1], conv.padding[::-1]).permute(0, 2, 3, 1)


def normalise(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """(B, T, F, C) -> the same."""
    return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
