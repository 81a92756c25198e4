"""The kernels around the transformer layers as PyTorch operators, each with its gradient.

Each operator, its shape, its gradient (an operator of its own, so that ``torch.compile`` takes it whole, too), and what
is kept for that. Gradients of weights leave the kernels in float32 and take the dtype of the weight here.
"""

from __future__ import annotations

from typing import Any

import fastenh_kernels
import torch
from torch import Tensor


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@torch.library.custom_op("fastenh::complex_mask", mutates_args=())
def complex_mask(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    return fastenh_kernels.complex_mask(mask, spectrum, activation)


@complex_mask.register_fake
def _(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    return torch.empty_like(spectrum)


@torch.library.custom_op("fastenh::encoder_front", mutates_args=())
def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return fastenh_kernels.encoder_front(spectrum, weight, bias, relu)


@encoder_front.register_fake
def _(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    batch, bins, frames = spectrum.shape
    return weight.new_empty((batch, frames, (bins + 1) // 2, weight.shape[0]))


@torch.library.custom_op("fastenh::encoder_conv", mutates_args=())
def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return fastenh_kernels.encoder_conv(x, matrix, bias, relu)


@encoder_conv.register_fake
def _(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return x.new_empty((*x.shape[:2], (x.shape[2] + 1) // 2, matrix.shape[2]))


@torch.library.custom_op("fastenh::encoder_conv_backward", mutates_args=())
def _encoder_conv_backward(grad: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return fastenh_kernels.encoder_conv_backward(grad, x, matrix)


@_encoder_conv_backward.register_fake
def _(grad: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    single = {"dtype": torch.float32}
    return _like(x), matrix.new_empty(matrix.shape, **single), matrix.new_empty(matrix.shape[2], **single)


def _keep_encoder_conv(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    x, matrix, bias, ctx.relu = inputs
    ctx.bias_dtype = bias.dtype
    ctx.save_for_backward(x, matrix, output if ctx.relu else None)


def _gradient_of_encoder_conv(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, matrix, output = ctx.saved_tensors
    grad = grad * (output > 0) if ctx.relu else grad
    grad_x, grad_matrix, grad_bias = _encoder_conv_backward(grad, x, matrix)
    return grad_x, grad_matrix.to(matrix.dtype), grad_bias.to(ctx.bias_dtype), None


encoder_conv.register_autograd(_gradient_of_encoder_conv, setup_context=_keep_encoder_conv)


@torch.library.custom_op("fastenh::decoder_taps", mutates_args=())
def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    return fastenh_kernels.decoder_taps(x, skip, matrix)


@decoder_taps.register_fake
def _(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:3], 3, matrix.shape[2] // 3))


@torch.library.custom_op("fastenh::decoder_taps_backward", mutates_args=())
def _decoder_taps_backward(grad: Tensor, x: Tensor, skip: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return fastenh_kernels.decoder_taps_backward(grad, x, skip, matrix)


@_decoder_taps_backward.register_fake
def _(grad: Tensor, x: Tensor, skip: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x), matrix.new_empty(matrix.shape, dtype=torch.float32)


def _keep_decoder_taps(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient_of_decoder_taps(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, skip, matrix = ctx.saved_tensors
    grad_x, grad_matrix = _decoder_taps_backward(grad, x, skip, matrix)
    return grad_x, grad_x, grad_matrix.to(matrix.dtype)


decoder_taps.register_autograd(_gradient_of_decoder_taps, setup_context=_keep_decoder_taps)


@torch.library.custom_op("fastenh::mask_head", mutates_args=())
def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return fastenh_kernels.mask_head(z, scale, shift, weight, bias, spectrum)


@mask_head.register_fake
def _(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return torch.empty_like(spectrum)
