"""The operations by Triton kernels (``layer_operators.py``, ``operators.py``), where there is one for the case.

What a kernel does not serve (odd widths) goes to the reference. Matrices take the dtype of autocast here.
Imported when a backend with kernels is chosen, never before: Triton may be absent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh.ops import layer_operators, operators, reference
from fastenh.ops.types import Activation, Axis, AxisLayerWeights

_WIDTHS = (16, 32, 64, 128)


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
    if qkv.shape[-1] // (3 * heads) not in _WIDTHS or not _power_of_two(heads):
        return reference.axis_attention(qkv, heads, axis, dropout)
    if dropout or _gradient(qkv):
        seed = _seed(qkv) if dropout else None
        return layer_operators.axis_attention_forward(qkv.contiguous(), heads, axis, dropout, seed)[0]
    return layer_operators.axis_attention(qkv.contiguous(), heads, axis)


def axis_layer(x: Tensor, weights: AxisLayerWeights, heads: int, axis: Axis, dropout: float, history: int) -> Tensor:
    if history:
        return reference.axis_layer(x, weights, heads, axis, dropout, history)
    width, hidden = x.shape[-1], weights.up_weight.shape[0]
    if width not in (64, 128) or hidden % 64 or width // heads not in _WIDTHS or not _power_of_two(heads):
        return reference.axis_layer(x, weights, heads, axis, dropout, attention=axis_attention)
    x = x.to(_autocast_dtype(x))
    rounded = [w.to(x.dtype) if w.ndim == 2 else w for w in weights]
    if dropout or _gradient(x, *weights):
        seed = _seed(x) if dropout else None
        return layer_operators.axis_layer_forward(x, rounded, heads, axis, dropout, seed)[0]
    return layer_operators.axis_layer(x, rounded, heads, axis)


def _seed(tensor: Tensor) -> Tensor:
    """Of a dropout, from PyTorch's generator of the device: it follows ``torch.manual_seed``."""
    return torch.randint(2**62, (1,), device=tensor.device)


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


def _gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that autocast would give a matrix product of ``tensor``."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
