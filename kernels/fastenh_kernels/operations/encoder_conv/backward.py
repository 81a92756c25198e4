"""The gradients of ``encoder_conv`` (``shared/time_taps_gradient.py``).

Two bands of the input lie side by side and draw on two bands of the result's gradient, side by side, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastenh_kernels.operations.encoder_conv.forward import encoder_conv_operator
from fastenh_kernels.shared.operators import as_dtypes_of, like, operator, single
from fastenh_kernels.shared.time_taps_gradient import input_gradient, matrix_gradient


def launch_encoder_conv_backward(grad: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and, in float32, of the matrix and the bias, of the convolution without ReLU.

    grad: (B, T, (F + 1) // 2, C'), the rest as in ``encoder_conv``.
    """
    channels = x.shape[3]
    grad = grad.contiguous()
    grad_x = input_gradient(grad, _pair_matrix(matrix.to(x.dtype), channels), x)
    row = {"step": 2 * channels, "used": 3 * channels, "start": -channels}
    sums = matrix_gradient(grad, x.contiguous(), None, **row, bias=True)
    return grad_x, sums[:, :-1].contiguous(), sums[1, -1].clone()  # results of an operator share no memory


def _pair_matrix(matrix: Tensor, channels: int) -> Tensor:
    """(3, 3C, C') -> (3, 2C', 2C): bands 2j and 2j + 1 of the input from bands j and j + 1 of the result.

    Band 2j is in the middle of band j's three; 2j + 1 is the last of band j's and the first of band j + 1's.
    """
    low, middle, high = matrix.flip(0).unflatten(1, (3, channels)).permute(1, 0, 3, 2)
    return torch.cat([torch.cat([middle, high], 2), torch.cat([torch.zeros_like(low), low], 2)], 1)


def _shapes(grad: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return like(x), single(matrix), matrix.new_empty(matrix.shape[2], dtype=torch.float32)


encoder_conv_backward = operator("encoder_conv_backward", launch_encoder_conv_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    x, matrix, bias, ctx.relu = inputs
    ctx.save_for_backward(x, matrix, bias, output if ctx.relu else None)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, matrix, bias, output = ctx.saved_tensors
    gradients = encoder_conv_backward(grad * (output > 0) if ctx.relu else grad, x, matrix)
    return *as_dtypes_of(gradients, (x, matrix, bias)), None


encoder_conv_operator.register_autograd(_gradient, setup_context=_keep)
