"""The operations of the models in plain PyTorch: the truth that every kernel is compared with.

Shapes: B clips, T frames, F bands, C channels. Activations are (B, T, F, C), C contiguous, from the
encoder's output to the mask (both axes of the dual path are then reached by strides alone).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.ops import tiles
from fastenh.ops.types import Activation, Axis, AxisLayerWeights

Attention = Callable[..., Tensor]


def _infers(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def complex_mask(mask: Tensor, spectrum: Tensor, activation: Activation) -> Tensor:
    if activation == "sigmoid":
        if mask.is_complex():
            raise ValueError("a complex mask takes the activation 'tanh' or 'none', not 'sigmoid'")
        mask = torch.sigmoid(mask)
    elif activation == "tanh":
        magnitude = mask.abs()
        mask = mask * (torch.tanh(magnitude) / magnitude.clamp_min(torch.finfo(magnitude.dtype).tiny))
    if mask.is_complex():
        return mask.to(spectrum.dtype) * spectrum
    return torch.view_as_complex(torch.view_as_real(spectrum) * mask.to(spectrum.real.dtype).unsqueeze(-1))


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    features = torch.log1p(spectrum.abs()).transpose(1, 2).unsqueeze(1)
    weight = weight.transpose(2, 3).contiguous(memory_format=torch.channels_last)  # and so will be the result
    x = F.conv2d(features, weight, bias, stride=(1, 2), padding=1)
    return (x.relu_() if relu else x).permute(0, 2, 3, 1)


def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    # (time taps, frequency taps x C, C') -> (C', C, time taps, frequency taps)
    weight = matrix.unflatten(1, (3, x.shape[-1])).permute(3, 2, 0, 1)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride=(1, 2), padding=1)
    return (x.relu_() if relu else x).permute(0, 2, 3, 1)


def axis_attention(qkv: Tensor, heads: int, axis: Axis, dropout: float, history: int = 0) -> Tensor:
    b, t, f, packed = qkv.shape
    width = packed // (3 * heads)
    split = qkv.view(b, t, f, 3, heads, width)
    order = (3, 0, 1, 4, 2, 5) if axis == "frequency" else (3, 0, 2, 4, 1, 5)
    q, k, v = split.permute(order).flatten(1, 2)  # (sequences, heads, length, width)
    seen = _recent(q.shape[-2], history, q.device) if history else None
    if qkv.requires_grad and not qkv.is_cuda:
        out = _explicit_attention(q, k, v, dropout, seen)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
    if axis == "frequency":
        return out.transpose(1, 2).reshape(b, t, f, heads * width)
    return out.unflatten(0, (b, f)).permute(0, 3, 1, 2, 4).reshape(b, t, f, heads * width)


def _recent(length: int, history: int, device: torch.device) -> Tensor:
    """(length, length), true where a position (row) sees another: itself and the ``history - 1`` before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - history)


def _explicit_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, seen: Tensor | None) -> Tensor:
    # Its backward on the CPU is three times as fast as that of the fused attention at these lengths.
    heads = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = torch.bmm(q, k.transpose(1, 2))
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.bmm(F.dropout(scores.softmax(-1), dropout), v).unflatten(0, heads)


def axis_layer(
    x: Tensor,
    w: AxisLayerWeights,
    heads: int,
    axis: Axis,
    dropout: float,
    history: int = 0,
    attention: Attention = axis_attention,
) -> Tensor:
    if _infers(x) and not dropout and not history and attention is axis_attention:
        return tiles.axis_layer(x, w, heads, axis)
    channels = (x.shape[-1],)
    qkv = F.linear(F.layer_norm(x, channels, w.norm1_weight, w.norm1_bias), w.qkv_weight, w.qkv_bias)
    attended = attention(qkv, heads, axis, dropout, history) if history else attention(qkv, heads, axis, dropout)
    attended = F.linear(attended, w.out_weight, w.out_bias)
    x = x + F.dropout(attended, dropout)
    hidden = F.relu(F.linear(F.layer_norm(x, channels, w.norm2_weight, w.norm2_bias), w.up_weight, w.up_bias))
    return x + F.dropout(F.linear(F.dropout(hidden, dropout), w.down_weight, w.down_bias), dropout)


def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    kernel = matrix.permute(2, 1, 0).unsqueeze(-1)  # (frequency taps x C', C, time taps, 1)
    z = F.conv2d((x + skip).permute(0, 3, 1, 2), kernel, padding=(1, 0))
    return z.permute(0, 2, 3, 1).unflatten(-1, (3, -1))


def _tap_matrix(bands: int, bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(bins, 3 * bands): what each (band, frequency tap) adds to each bin of the upsampled convolution."""
    make = _make_tap_matrix.__wrapped__ if torch.compiler.is_compiling() else _make_tap_matrix
    return make(bands, bins, dtype, device)


@lru_cache(maxsize=16)
def _make_tap_matrix(bands: int, bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # cached: it must stay usable in training
        eye = torch.eye(bands, dtype=torch.float64).unsqueeze(0)
        rows = F.interpolate(eye, size=bins, mode="linear", align_corners=False)[0].T  # (bins, bands)
        padded = F.pad(rows, (0, 0, 1, 1))
        taps = torch.stack([padded[k : k + bins] for k in range(3)], dim=-1)
        return taps.reshape(bins, 3 * bands).to(device=device, dtype=dtype)


def _upsampled(z: Tensor, bins: int) -> Tensor:
    """(bins, B, T, C): the 3x3 convolution of the upsampled features, from its commuted form z (B, T, F, 3, C)."""
    b, t, f, taps, channels = z.shape
    rows = z.permute(2, 3, 0, 1, 4).reshape(f * taps, b * t * channels)
    return torch.mm(_tap_matrix(f, bins, z.dtype, z.device), rows).view(bins, b, t, channels)


class _Moments(torch.autograd.Function):
    """Mean and variance over bins, clips and frames. Written out since autograd keeps and walks the large
    upsampled tensor some six times here; it is recomputed instead."""

    @staticmethod
    def forward(ctx, z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        up = _upsampled(z, bins)
        var, mean = torch.var_mean(up.to(torch.promote_types(up.dtype, torch.float32)), (0, 1, 2), correction=0)
        ctx.save_for_backward(z, mean)
        ctx.bins = bins
        return mean, var

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:
        z, mean = ctx.saved_tensors
        b, t, f, taps, channels = z.shape
        slope = 2 * grad_var / (ctx.bins * b * t)
        offset = grad_mean / (ctx.bins * b * t) - slope * mean
        grad_up = torch.addcmul(offset.to(z.dtype), _upsampled(z, ctx.bins), slope.to(z.dtype))
        matrix = _tap_matrix(f, ctx.bins, z.dtype, z.device)
        grad_rows = torch.mm(matrix.T, grad_up.view(ctx.bins, -1)).view(f, taps, b, t, channels)
        return grad_rows.permute(2, 3, 0, 1, 4), None


def upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    return _Moments.apply(z, bins)


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    if _infers(z):
        taps = _tap_matrix(z.shape[2], spectrum.shape[1], z.dtype, z.device)
        logits = tiles.mask_logits(z, scale, shift, weight, bias, taps)
        return complex_mask(logits.to(spectrum.real.dtype), spectrum, "sigmoid")
    hidden = torch.addcmul(shift.to(z.dtype), _upsampled(z, spectrum.shape[1]), scale.to(z.dtype)).relu()
    logits = F.linear(hidden, weight.reshape(1, -1), bias)
    return complex_mask(logits.squeeze(-1).permute(1, 0, 2).to(spectrum.real.dtype), spectrum, "sigmoid")
