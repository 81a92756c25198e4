"""The Triton kernels as PyTorch operators: ``torch.compile`` and ``torch.export`` take each as a whole.

What a kernel does not serve (odd widths, dropout) goes to the reference, and so do gradients but those of attention.
Imported when a backend with kernels is chosen, never before: Triton may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastenh_kernels
import torch
from torch import Tensor

from fastenh.ops import reference
from fastenh.ops.types import Activation, Axis, AxisLayerWeights

DIFFERENTIABLE = ("axis_attention", "axis_layer")  # where a gradient is needed, too
_WIDTHS = (16, 32, 64, 128)


@torch.library.custom_op("fastenh::complex_mask", mutates_args=())
def _complex_mask(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    return fastenh_kernels.complex_mask(mask, spectrum, activation)


@_complex_mask.register_fake
def _(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    return torch.empty_like(spectrum)


@torch.library.custom_op("fastenh::axis_attention", mutates_args=())
def _axis_attention(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_attention(qkv, heads, axis)


@_axis_attention.register_fake
def _(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@torch.library.custom_op("fastenh::axis_attention_forward", mutates_args=())
def _axis_attention_forward(qkv: Tensor, heads: int, axis: str) -> tuple[Tensor, Tensor]:
    return fastenh_kernels.axis_attention_forward(qkv, heads, axis)


@_axis_attention_forward.register_fake
def _(qkv: Tensor, heads: int, axis: str) -> tuple[Tensor, Tensor]:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)), _softmax_sums(qkv, heads, axis)


@torch.library.custom_op("fastenh::axis_attention_backward", mutates_args=())
def _axis_attention_backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_attention_backward(grad, qkv, out, lse, heads, axis)


@_axis_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, heads: int, axis: str) -> Tensor:
    return torch.empty_like(qkv)


def _keep_attention(ctx: Any, inputs: tuple[Tensor, int, str], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.heads, ctx.axis = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, *output)


def _attention_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return _axis_attention_backward(grad, *ctx.saved_tensors, ctx.heads, ctx.axis), None, None


_axis_attention_forward.register_autograd(_attention_gradient, setup_context=_keep_attention)


@torch.library.custom_op("fastenh::mask_head", mutates_args=())
def _mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return fastenh_kernels.mask_head(z, scale, shift, weight, bias, spectrum)


@_mask_head.register_fake
def _(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return torch.empty_like(spectrum)


@torch.library.custom_op("fastenh::axis_layer", mutates_args=())
def _axis_layer(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_layer(x, weights, heads, axis)


@_axis_layer.register_fake
def _(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("fastenh::axis_layer_forward", mutates_args=())
def _axis_layer_forward(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> list[Tensor]:
    return fastenh_kernels.axis_layer_forward(x, weights, heads, axis)


@_axis_layer_forward.register_fake
def _(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> list[Tensor]:
    y, attended, mid = (x.new_empty(x.shape) for _ in range(3))
    qkv = x.new_empty((*x.shape[:3], 3 * x.shape[3]))
    return [y, qkv, attended, _softmax_sums(qkv, heads, axis), mid]


@torch.library.custom_op("fastenh::axis_layer_backward", mutates_args=())
def _axis_layer_backward(
    grad: Tensor, x: Tensor, kept: Sequence[Tensor], weights: Sequence[Tensor], heads: int, axis: str
) -> list[Tensor]:
    return fastenh_kernels.axis_layer_backward(grad, x, kept, weights, heads, axis)


@_axis_layer_backward.register_fake
def _(
    grad: Tensor, x: Tensor, kept: Sequence[Tensor], weights: Sequence[Tensor], heads: int, axis: str
) -> list[Tensor]:
    return [x.new_empty(x.shape), *(w.new_empty(w.shape, dtype=torch.float32) for w in weights)]


def _keep_layer(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], int, str], output: list[Tensor]) -> None:
    x, weights, ctx.heads, ctx.axis = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros for what is kept
    ctx.save_for_backward(x, *output[1:], *weights)


def _layer_gradient(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, list[Tensor], None, None]:
    x, *kept = ctx.saved_tensors
    kept, weights = kept[:4], kept[4:]
    grad_x, *grad_weights = _axis_layer_backward(grads[0], x, kept, weights, ctx.heads, ctx.axis)
    return grad_x, [g.to(w.dtype) for g, w in zip(grad_weights, weights, strict=True)], None, None


_axis_layer_forward.register_autograd(_layer_gradient, setup_context=_keep_layer)


def _softmax_sums(qkv: Tensor, heads: int, axis: str) -> Tensor:
    b, t, f, _ = qkv.shape
    inner, length = (t, f) if axis == "frequency" else (f, t)
    return qkv.new_empty((b * inner * heads, length), dtype=torch.float32)


@torch.library.custom_op("fastenh::decoder_taps", mutates_args=())
def _decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    return fastenh_kernels.decoder_taps(x, skip, matrix)


@_decoder_taps.register_fake
def _(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:3], 3, matrix.shape[2] // 3))


@torch.library.custom_op("fastenh::encoder_conv", mutates_args=())
def _encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return fastenh_kernels.encoder_conv(x, matrix, bias, relu)


@_encoder_conv.register_fake
def _(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return x.new_empty((*x.shape[:2], (x.shape[2] + 1) // 2, matrix.shape[2]))


@torch.library.custom_op("fastenh::encoder_front", mutates_args=())
def _encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return fastenh_kernels.encoder_front(spectrum, weight, bias, relu)


@_encoder_front.register_fake
def _(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    batch, bins, frames = spectrum.shape
    return weight.new_empty((batch, frames, (bins + 1) // 2, weight.shape[0]))


def complex_mask(mask: Tensor, spectrum: Tensor, activation: Activation) -> Tensor:
    return _complex_mask(mask, spectrum, activation)


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    if not _power_of_two(weight.shape[0]):
        return reference.encoder_front(spectrum, weight, bias, relu)
    return _encoder_front(spectrum, weight.to(_autocast_dtype(weight)), bias, relu)


def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    if matrix.shape[1] > 128:
        return reference.encoder_conv(x, matrix, bias, relu)
    x = x.to(_autocast_dtype(x))
    return _encoder_conv(x, matrix.to(x.dtype), bias, relu)


def axis_attention(qkv: Tensor, heads: int, axis: Axis, dropout: float) -> Tensor:
    if dropout or qkv.shape[-1] // (3 * heads) not in _WIDTHS or not _power_of_two(heads):
        return reference.axis_attention(qkv, heads, axis, dropout)
    if _gradient(qkv):
        return _axis_attention_forward(qkv.contiguous(), heads, axis)[0]
    return _axis_attention(qkv.contiguous(), heads, axis)


def axis_layer(x: Tensor, weights: AxisLayerWeights, heads: int, axis: Axis, dropout: float) -> Tensor:
    width, hidden = x.shape[-1], weights.up_weight.shape[0]
    odd = width not in (64, 128) or hidden % 64 or width // heads not in _WIDTHS
    if dropout or odd:
        return reference.axis_layer(x, weights, heads, axis, dropout, attention=axis_attention)
    x = x.to(_autocast_dtype(x))
    rounded = [w.to(x.dtype) if w.ndim == 2 else w for w in weights]
    if _gradient(x, *weights):
        return _axis_layer_forward(x, rounded, heads, axis)[0]
    return _axis_layer(x, rounded, heads, axis)


def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    if x.shape[-1] > 128:
        return reference.decoder_taps(x, skip, matrix)
    x = x.to(_autocast_dtype(x))
    return _decoder_taps(x, skip.to(x.dtype), matrix.to(x.dtype))


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    if not _power_of_two(z.shape[-1]) or z.shape[-1] < 16:
        return reference.mask_head(z, scale, shift, weight, bias, spectrum)
    return _mask_head(z, scale, shift, weight, bias, spectrum)


def _gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast would give a matrix product of ``tensor``."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
