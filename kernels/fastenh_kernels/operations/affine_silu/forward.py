"""``affine_silu``: one read and one write."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.bands import silu
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, launch, size
from fastenh_kernels.shared.norm import affine_of
from fastenh_kernels.shared.operators import like, operator

ROWS = 128  # of a program at a time


@triton.jit(do_not_specialize=["rows"])
def affine_silu_kernel(
    p_x,  # (rows, C), contiguous
    p_affine,  # (2, C)
    p_y,  # as x
    rows,
    C: tl.constexpr,
    M: tl.constexpr,
):
    b_scale, b_shift = affine_of(p_affine, C)
    o_row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)[:, None]
    o_x = o_row * C + tl.arange(0, C)[None, :]
    b_x = tl.load(p_x + o_x, mask=o_row < rows, other=0.0).to(tl.float32)
    tl.store(p_y + o_x, silu(b_x * b_scale + b_shift, p_y.dtype.element_ty).to(p_y.dtype.element_ty), mask=o_row < rows)


def launch_affine_silu(x: Tensor, affine: Tensor) -> Tensor:
    """In the dtype of x."""
    y = like(x)
    rows = x.numel() // x.shape[3]

    def cost() -> Cost:
        return Cost((), flop=0.0, l2_bytes=size(x, y), dram_bytes=size(x, y))

    launch(
        affine_silu_kernel,
        triton.cdiv(rows, ROWS),
        cost,
        num_warps=4,
        p_x=x.contiguous(),
        p_affine=affine.contiguous(),
        p_y=y,
        rows=rows,
        C=x.shape[3],
        M=ROWS,
    )
    return y


def _shape(x: Tensor, affine: Tensor) -> Tensor:
    return like(x)


affine_silu_operator = operator("affine_silu", launch_affine_silu, _shape)


def affine_silu(x: Tensor, affine: Tensor) -> Tensor:
    return affine_silu_operator(x.to(autocast_dtype(x)), affine)
