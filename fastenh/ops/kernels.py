"""The Triton kernels as PyTorch operators: ``torch.compile`` and ``torch.export`` take each as a whole.

What a kernel does not serve (odd widths, dropout) goes to the reference. ``operators.py`` has what stands around the
layers.
Imported when a backend with kernels is chosen, never before: Triton may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastenh_kernels
import torch
from torch import Tensor

from fastenh.ops import operators, reference
from fastenh.ops.types import Activation, Axis, AxisLayerWeights

DIFFERENTIABLE = (  # where a gradient is needed, too
    "axis_attention",
    "axis_layer",
    "complex_mask",
    "decoder_taps",
    "encoder_conv",
    "encoder_front",
    "mask_head",
    "upsampled_moments",
)
_WIDTHS = (16, 32, 64, 128)


@torch.library.custom_op("fastenh::axis_attention", mutates_args=())
def _axis_attention(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_attention(qkv, heads, axis)


@_axis_attention.register_fake
def _(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@torch.library.custom_op("fastenh::axis_attention_backward", mutates_args=())
def _axis_attention_backward(grad: Tensor, qkv: Tensor, out: Tensor, heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_attention_backward(grad, qkv, out, heads, axis)


@_axis_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, out: Tensor, heads: int, axis: str) -> Tensor:
    return torch.empty_like(qkv)


def _keep(ctx: Any, inputs: tuple[Tensor, int, str], output: Tensor) -> None:
    qkv, ctx.heads, ctx.axis = inputs
    ctx.save_for_backward(qkv, output)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _axis_attention_backward(grad, *ctx.saved_tensors, ctx.heads, ctx.axis), None, None


_axis_attention.register_autograd(_gradient, setup_context=_keep)


@torch.library.custom_op("fastenh::axis_layer", mutates_args=())
def _axis_layer(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_layer(x, weights, heads, axis)


@_axis_layer.register_fake
def _(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    return x.new_empty(x.shape)


def complex_mask(mask: Tensor, spectrum: Tensor, activation: Activation) -> Tensor:
    return operators.complex_mask(mask, spectrum, activation)


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    if not _power_of_two(weight.shape[0]) or (torch.is_grad_enabled() and spectrum.requires_grad):
        return reference.encoder_front(spectrum, weight, bias, relu)
    return operators.encoder_front(spectrum, weight.to(_autocast_dtype(weight)), bias, relu)


def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    if max(matrix.shape[1:]) > 128:
        return reference.encoder_conv(x, matrix, bias, relu)
    x = x.to(_autocast_dtype(x))
    return operators.encoder_conv(x, matrix.to(x.dtype), bias, relu)


def axis_attention(qkv: Tensor, heads: int, axis: Axis, dropout: float) -> Tensor:
    if dropout or qkv.shape[-1] // (3 * heads) not in _WIDTHS:
        return reference.axis_attention(qkv, heads, axis, dropout)
    return _axis_attention(qkv.contiguous(), heads, axis)


def axis_layer(x: Tensor, weights: AxisLayerWeights, heads: int, axis: Axis, dropout: float) -> Tensor:
    width, hidden = x.shape[-1], weights.up_weight.shape[0]
    odd = width not in (64, 128) or hidden % 64 or width // heads not in _WIDTHS
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    if dropout or odd or gradient:
        return reference.axis_layer(x, weights, heads, axis, dropout, attention=axis_attention)
    x = x.to(_autocast_dtype(x))
    return _axis_layer(x, [w.to(x.dtype) if w.ndim == 2 else w for w in weights], heads, axis)


def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    if x.shape[-1] > 128 or matrix.shape[2] > 256:
        return reference.decoder_taps(x, skip, matrix)
    x = x.to(_autocast_dtype(x))
    return operators.decoder_taps(x, skip.to(x.dtype), matrix.to(x.dtype))


def upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    if not _power_of_two(z.shape[-1]) or z.shape[-1] < 16:
        return reference.upsampled_moments(z, bins)
    return operators.upsampled_moments(z, bins)


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    if not _power_of_two(z.shape[-1]) or z.shape[-1] < 16:
        return reference.mask_head(z, scale, shift, weight, bias, spectrum)
    return operators.mask_head(z, scale, shift, weight, bias, spectrum)


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast would give a matrix product of ``tensor``."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
