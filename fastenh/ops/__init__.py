"""The operations that models are made of: one signature each, whichever implementation runs (``backend.py``).

Shapes: B clips, T frames, F bands, C channels. Activations are (B, T, F, C) with C contiguous.
"""

from __future__ import annotations

from torch import Tensor

from fastenh.ops.backend import pick
from fastenh.ops.types import Activation, Axis, AxisLayerWeights

__all__ = [
    "AxisLayerWeights",
    "axis_attention",
    "axis_layer",
    "complex_mask",
    "decoder_taps",
    "encoder_conv",
    "encoder_front",
    "mask_head",
    "upsampled_moments",
]


def complex_mask(mask: Tensor, spectrum: Tensor, activation: Activation) -> Tensor:
    """``activation(mask) * spectrum``.

    mask: (B, F, T), real or complex; spectrum: complex (B, F, T). Returns complex (B, F, T).
    activation: "sigmoid" for a real mask; "tanh", which bounds the magnitude of a complex mask and keeps its phase
    (Williamson et al. 2016, "Complex ratio masking for monaural speech separation"); "none".
    """
    return pick("complex_mask", mask, spectrum)(mask, spectrum, activation)


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """``conv2d(log1p|spectrum|)``, 3x3, stride 2 along frequency, padding 1; then ReLU if asked for.

    spectrum: complex (B, F, T); weight: (C, 1, 3 frequency taps, 3 time taps); bias: (C,).
    Returns (B, T, (F + 1) // 2, C).
    """
    return pick("encoder_front", spectrum, weight, bias)(spectrum, weight, bias, relu)


def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """``conv2d(x)``, 3x3, stride 2 along frequency, padding 1; then ReLU if asked for.

    x: (B, T, F, C); matrix: (3 time taps, 3 frequency taps x C, C'); bias: (C',). Returns (B, T, (F + 1) // 2, C').
    """
    return pick("encoder_conv", x, matrix, bias)(x, matrix, bias, relu)


def axis_attention(qkv: Tensor, heads: int, axis: Axis, dropout: float = 0.0) -> Tensor:
    """Multi-head self-attention along one axis, straight from the packed projections.

    qkv: (B, T, F, 3C), query, key and value in turn, each of ``heads`` heads of C / heads channels. The softmax runs
    over F for "frequency" and over T for "time", scores scaled by the root of the head's width (Vaswani et al. 2017,
    "Attention is all you need"). dropout: probability, on the attention weights. Returns (B, T, F, C).
    """
    return pick("axis_attention", qkv)(qkv, heads, axis, dropout)


def axis_layer(
    x: Tensor, weights: AxisLayerWeights, heads: int, axis: Axis, dropout: float = 0.0, history: int = 0
) -> Tensor:
    """A pre-LN transformer encoder layer along one axis, ReLU in between its two feed-forward maps.

    x: (B, T, F, C). dropout: probability, on attention weights, hidden units and both residual branches.
    history: positions that attention sees, the present one and those before it; 0 for all, before and after.
    Returns (B, T, F, C).
    """
    return pick("axis_layer", x, *weights)(x, weights, heads, axis, dropout, history)


def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    """The 3x3 convolution of the decoder, of x + skip, before upsampling: time taps summed, frequency taps apart.

    Linear upsampling along frequency shares no dimension with channels or time, so
    ``conv3x3(upsample(x))`` is the sum over k of the upsampled tap k, shifted by k - 1 bins.
    x, skip: (B, T, F, C); matrix: (3 time taps, C, 3 frequency taps x C'). Returns z: (B, T, F, 3, C').
    """
    return pick("decoder_taps", x, skip, matrix)(x, skip, matrix)


def upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance, each (C',), of ``conv3x3(upsample(x))`` over clips, frames and ``bins``.

    z: (B, T, F, 3, C') from ``decoder_taps``. For batch norm in training: in float32, or in float64 for float64.
    """
    return pick("upsampled_moments", z)(z, bins)


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    """``sigmoid(weight . relu(scale * up(z) + shift) + bias) * spectrum``, up(z) the upsampled convolution.

    z: (B, T, F, 3, C') from ``decoder_taps``; scale, shift: (C',), batch norm and the convolution's bias folded;
    weight: (1, C', 1, 1) or (C',); bias: (1,); spectrum: complex (B, bins, T). Returns complex (B, bins, T).
    Upsampling is linear, align_corners=False, from F to ``bins``; rows outside are zero.
    """
    return pick("mask_head", z, scale, shift, weight, bias, spectrum)(z, scale, shift, weight, bias, spectrum)
