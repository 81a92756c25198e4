"""``upsampled_moments`` on a processor, its gradient written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastenh_kernels.operations.upsampled_moments import reference
from fastenh_kernels.shared.upsampled import tap_matrix, upsampled


class _Moments(torch.autograd.Function):
    """Autograd keeps and walks the large upsampled tensor some six times; here it is computed again instead."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        mean, var = reference.upsampled_moments(z, bins)
        ctx.save_for_backward(z, mean)
        ctx.bins = bins
        return mean, var

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:
        z, mean = ctx.saved_tensors
        b, t, f, taps, channels = z.shape
        slope = 2 * grad_var / (ctx.bins * b * t)
        offset = grad_mean / (ctx.bins * b * t) - slope * mean
        matrix = tap_matrix(f, ctx.bins, z.dtype, z.device)
        grad_up = torch.addcmul(offset.to(z.dtype), upsampled(z, matrix), slope.to(z.dtype))
        grad_rows = torch.mm(matrix.T, grad_up.view(ctx.bins, -1)).view(f, taps, b, t, channels)
        return grad_rows.permute(2, 3, 0, 1, 4), None


def upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    return _Moments.apply(z, bins)
