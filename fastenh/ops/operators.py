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


@torch.library.custom_op("fastenh::complex_mask_backward", mutates_args=())
def _complex_mask_backward(
    grad: Tensor, mask: Tensor, spectrum: Tensor, activation: str, with_spectrum: bool
) -> tuple[Tensor, Tensor]:
    grad_mask, grad_spectrum = fastenh_kernels.complex_mask_backward(grad, mask, spectrum, activation, with_spectrum)
    return grad_mask, spectrum.new_empty(0) if grad_spectrum is None else grad_spectrum


@_complex_mask_backward.register_fake
def _(grad: Tensor, mask: Tensor, spectrum: Tensor, activation: str, with_spectrum: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mask), torch.empty_like(spectrum) if with_spectrum else spectrum.new_empty(0)


def _keep_complex_mask(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    mask, spectrum, ctx.activation = inputs
    ctx.save_for_backward(mask, spectrum)


def _gradient_of_complex_mask(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
    asked = ctx.needs_input_grad[1]
    grad_mask, grad_spectrum = _complex_mask_backward(grad, *ctx.saved_tensors, ctx.activation, asked)
    return grad_mask, grad_spectrum if asked else None, None


complex_mask.register_autograd(_gradient_of_complex_mask, setup_context=_keep_complex_mask)


@torch.library.custom_op("fastenh::encoder_front", mutates_args=())
def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return fastenh_kernels.encoder_front(spectrum, weight, bias, relu)


@encoder_front.register_fake
def _(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    batch, bins, frames = spectrum.shape
    return weight.new_empty((batch, frames, (bins + 1) // 2, weight.shape[0]))


@torch.library.custom_op("fastenh::encoder_front_backward", mutates_args=())
def _encoder_front_backward(grad: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    return fastenh_kernels.encoder_front_backward(grad, spectrum)


@_encoder_front_backward.register_fake
def _(grad: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    channels = grad.shape[3]
    weight = grad.new_empty((channels, 1, 3, 3), dtype=torch.float32)
    return weight, weight.new_empty(channels)


def _keep_encoder_front(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    spectrum, weight, bias, ctx.relu = inputs
    ctx.dtypes = weight.dtype, bias.dtype
    ctx.save_for_backward(spectrum, output if ctx.relu else None)


def _gradient_of_encoder_front(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
    spectrum, output = ctx.saved_tensors
    weight, bias = _encoder_front_backward(grad * (output > 0) if ctx.relu else grad, spectrum)
    return None, weight.to(ctx.dtypes[0]), bias.to(ctx.dtypes[1]), None


encoder_front.register_autograd(_gradient_of_encoder_front, setup_context=_keep_encoder_front)


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


@torch.library.custom_op("fastenh::upsampled_moments", mutates_args=())
def upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    return fastenh_kernels.upsampled_moments(z, bins)


@upsampled_moments.register_fake
def _(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    mean = z.new_empty(z.shape[4], dtype=torch.float32)
    return mean, torch.empty_like(mean)


@torch.library.custom_op("fastenh::upsampled_moments_backward", mutates_args=())
def _upsampled_moments_backward(grad_mean: Tensor, grad_var: Tensor, z: Tensor, mean: Tensor, bins: int) -> Tensor:
    return fastenh_kernels.upsampled_moments_backward(grad_mean, grad_var, z, mean, bins)


@_upsampled_moments_backward.register_fake
def _(grad_mean: Tensor, grad_var: Tensor, z: Tensor, mean: Tensor, bins: int) -> Tensor:
    return _like(z)


def _keep_upsampled_moments(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    z, ctx.bins = inputs
    ctx.save_for_backward(z, output[0])


def _gradient_of_upsampled_moments(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:
    return _upsampled_moments_backward(grad_mean, grad_var, *ctx.saved_tensors, ctx.bins), None


upsampled_moments.register_autograd(_gradient_of_upsampled_moments, setup_context=_keep_upsampled_moments)


@torch.library.custom_op("fastenh::mask_head", mutates_args=())
def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return fastenh_kernels.mask_head(z, scale, shift, weight, bias, spectrum)


@mask_head.register_fake
def _(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return torch.empty_like(spectrum)


@torch.library.custom_op("fastenh::mask_head_backward", mutates_args=())
def _mask_head_backward(
    grad: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    spectrum: Tensor,
    with_spectrum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (grad, z, scale, shift, weight, bias, spectrum, with_spectrum)
    *others, grad_spectrum = fastenh_kernels.mask_head_backward(*arguments)
    return *others, spectrum.new_empty(0) if grad_spectrum is None else grad_spectrum


@_mask_head_backward.register_fake
def _(
    grad: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    spectrum: Tensor,
    with_spectrum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    vectors = (tensor.new_empty(tensor.shape, dtype=torch.float32) for tensor in (scale, shift, weight, bias))
    return _like(z), *vectors, torch.empty_like(spectrum) if with_spectrum else spectrum.new_empty(0)


def _keep_mask_head(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient_of_mask_head(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    asked = ctx.needs_input_grad[5]
    *gradients, grad_spectrum = _mask_head_backward(grad, *ctx.saved_tensors, asked)
    like = zip(gradients, ctx.saved_tensors[:5], strict=True)
    return *(gradient.to(tensor.dtype) for gradient, tensor in like), grad_spectrum if asked else None


mask_head.register_autograd(_gradient_of_mask_head, setup_context=_keep_mask_head)
