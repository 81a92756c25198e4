"""The gradients of ``affine_silu``. Sums over rows are left by programs and added up at the end."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.affine_silu.forward import ROWS, affine_silu_operator
from fastenh_kernels.shared.bands import silu_with_slope
from fastenh_kernels.shared.launch import Cost, launch, parts_of, size
from fastenh_kernels.shared.norm import affine_of
from fastenh_kernels.shared.operators import like, operator, single


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def affine_silu_backward_kernel(
    p_grad,  # (rows, C), contiguous
    p_x,  # as grad
    p_affine,  # (2, C)
    p_grad_x,  # as grad
    p_sums,  # (programs, 2, C), float32
    rows,
    tiles,
    programs,
    C: tl.constexpr,
    M: tl.constexpr,
):
    o_c = tl.arange(0, C)
    b_scale, b_shift = affine_of(p_affine, C)
    b_scales, b_shifts = (tl.zeros([M, C], tl.float32),) * 2
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, programs):
        o_row = tile * M + tl.arange(0, M)[:, None]
        o_x = o_row * C + o_c[None, :]
        b_x = tl.load(p_x + o_x, mask=o_row < rows, other=0.0).to(tl.float32)
        b_g = tl.load(p_grad + o_x, mask=o_row < rows, other=0.0).to(tl.float32)
        _, b_slope = silu_with_slope(b_x * b_scale + b_shift, p_x.dtype.element_ty)
        b_dz = b_g * b_slope
        b_scales += b_dz * b_x
        b_shifts += b_dz
        tl.store(p_grad_x + o_x, (b_dz * b_scale).to(p_grad_x.dtype.element_ty), mask=o_row < rows)
    p_sum = p_sums + tl.program_id(0).to(tl.int64) * (2 * C) + o_c
    tl.store(p_sum, tl.sum(b_scales, 0))
    tl.store(p_sum + C, tl.sum(b_shifts, 0))


def launch_affine_silu_backward(grad: Tensor, x: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and, in float32, of affine."""
    grad_x = like(x)
    channels = x.shape[3]
    rows = x.numel() // channels
    tiles = triton.cdiv(rows, ROWS)
    programs = min(tiles, parts_of(tiles, 1, x.device))
    sums = torch.empty(programs, 2, channels, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        moved = size(grad, x, grad_x, sums)
        return Cost((tiles / max(programs, 1),), flop=0.0, l2_bytes=moved, dram_bytes=moved)

    launch(
        affine_silu_backward_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_grad=grad.contiguous(),
        p_x=x.contiguous(),
        p_affine=affine.contiguous(),
        p_grad_x=grad_x,
        p_sums=sums,
        rows=rows,
        tiles=tiles,
        programs=programs,
        C=channels,
        M=ROWS,
    )
    return grad_x, sums.sum(0)


def _shapes(grad: Tensor, x: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    return like(x), single(affine)


affine_silu_backward = operator("affine_silu_backward", launch_affine_silu_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, affine = ctx.saved_tensors
    grad_x, grad_affine = affine_silu_backward(grad, x, affine)
    return grad_x, grad_affine.to(affine.dtype)


affine_silu_operator.register_autograd(_gradient, setup_context=_keep)
