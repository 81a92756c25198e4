"""The gradients of ``decoder_taps`` (``shared/time_taps_gradient.py``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastenh_kernels.operations.decoder_taps.forward import decoder_taps_operator
from fastenh_kernels.shared.operators import like, operator, single
from fastenh_kernels.shared.time_taps_gradient import input_gradient, matrix_gradient


def launch_decoder_taps_backward(grad: Tensor, x: Tensor, skip: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, which is that of the skip connection, too, and, in float32, of the matrix.

    grad: (B, T, F, 3, C'), the rest as in ``decoder_taps``.
    """
    channels = x.shape[3]
    grad = grad.contiguous().flatten(3)
    grad_x = input_gradient(grad, matrix.to(x.dtype).flip(0).transpose(1, 2), x)
    sums = matrix_gradient(grad, x.contiguous(), skip.contiguous(), step=channels, used=channels, start=0)
    return grad_x, sums


def _shapes(grad: Tensor, x: Tensor, skip: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return like(x), single(matrix)


decoder_taps_backward = operator("decoder_taps_backward", launch_decoder_taps_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, skip, matrix = ctx.saved_tensors
    grad_x, grad_matrix = decoder_taps_backward(grad, x, skip, matrix)
    return grad_x, grad_x, grad_matrix.to(matrix.dtype)


decoder_taps_operator.register_autograd(_gradient, setup_context=_keep)
