"""The Triton kernels as PyTorch operators, forward only: ``torch.compile`` and ``torch.export`` take each as a whole.

What a kernel does not serve (odd head widths, dropout) goes to the reference. Imported when a backend with kernels is
chosen, never before: Triton may be absent.
"""

from __future__ import annotations

import fastenh_kernels
import torch
from torch import Tensor

from fastenh.ops import reference
from fastenh.ops.types import Activation, Axis, AxisLayerWeights

_HEAD_WIDTHS = (16, 32, 64, 128)


@torch.library.custom_op("fastenh::complex_mask", mutates_args=())
def _complex_mask(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    return fastenh_kernels.complex_mask(mask, spectrum, activation)


@_complex_mask.register_fake
def _(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    return spectrum.new_empty(spectrum.shape)


@torch.library.custom_op("fastenh::axis_attention", mutates_args=())
def _axis_attention(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_attention(qkv, heads, axis)


@_axis_attention.register_fake
def _(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@torch.library.custom_op("fastenh::mask_head", mutates_args=())
def _mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return fastenh_kernels.mask_head(z, scale, shift, weight, bias, spectrum)


@_mask_head.register_fake
def _(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return spectrum.new_empty(spectrum.shape)


def complex_mask(mask: Tensor, spectrum: Tensor, activation: Activation) -> Tensor:
    return _complex_mask(mask, spectrum, activation)


def axis_attention(qkv: Tensor, heads: int, axis: Axis, dropout: float) -> Tensor:
    if dropout or qkv.shape[-1] // (3 * heads) not in _HEAD_WIDTHS:
        return reference.axis_attention(qkv, heads, axis, dropout)
    return _axis_attention(qkv.contiguous(), heads, axis)


def axis_layer(x: Tensor, weights: AxisLayerWeights, heads: int, axis: Axis, dropout: float) -> Tensor:
    return reference.axis_layer(x, weights, heads, axis, dropout, attention=axis_attention)


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    channels = z.shape[-1]
    if channels & (channels - 1):
        return reference.mask_head(z, scale, shift, weight, bias, spectrum)
    return _mask_head(z, scale, shift, weight, bias, spectrum)
