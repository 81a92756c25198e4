"""The gradient of ``upsampled_moments``; the upsampled tensor is never made.

The gradient of an upsampled value is slope * (up - mean) and a constant of the channel; the transposed map after the
map is one banded matrix, so that a program takes its rows of z from one product.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.upsampled_moments.forward import upsampled_moments
from fastenh_kernels.shared.launch import Cost, chunk_of, dot_precision, launch, size
from fastenh_kernels.shared.moments import gradient_of_moments
from fastenh_kernels.shared.operators import like, operator
from fastenh_kernels.shared.upsampling import band_blocks


@triton.jit(do_not_specialize=["total", "blocks", "chunk"])
def upsampled_moments_backward_kernel(
    p_z,  # (B, T, ROWS, C), contiguous
    p_around,  # (blocks, M, K)
    p_ones,  # (blocks, M)
    p_bounds,  # (blocks, 6)
    p_slope,  # (C,)
    p_offset,  # (C,)
    p_grad_z,  # as z
    total,  # B * T
    blocks,
    chunk,  # frames of a program
    ROWS: tl.constexpr,
    C: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block = tl.program_id(0) % blocks
    first = (tl.program_id(0) // blocks).to(tl.int64) * chunk
    o_m, o_k, o_c = tl.arange(0, M), tl.arange(0, K), tl.arange(0, C)
    o_row = tl.load(p_bounds + i_block * 6) + o_k
    o_out = tl.load(p_bounds + i_block * 6 + 4) + o_m
    m_out = (o_out < tl.load(p_bounds + i_block * 6 + 5))[:, None]
    b_around = tl.load(p_around + (i_block * M + o_m[:, None]) * K + o_k[None, :])  # [M, K]
    b_ones = tl.load(p_ones + i_block * M + o_m)[:, None]
    b_slope = tl.load(p_slope + o_c)[None, :]
    b_constant = b_ones * tl.load(p_offset + o_c)[None, :]  # [M, C]
    p_rows = p_z + o_row[:, None] * C + o_c[None, :]
    p_out = p_grad_z + o_out[:, None] * C + o_c[None, :]
    for i_frame in tl.range(first, tl.minimum(first + chunk, total)):
        b_z = tl.load(p_rows + i_frame * (ROWS * C), mask=(o_row < ROWS)[:, None], other=0.0)  # [K, C]
        b_grad = tl.dot(b_around, b_z, input_precision=PRECISION) * b_slope + b_constant
        tl.store(p_out + i_frame * (ROWS * C), b_grad.to(p_grad_z.dtype.element_ty), mask=m_out)


def launch_upsampled_moments_backward(
    grad_mean: Tensor, grad_var: Tensor, z: Tensor, mean: Tensor, bins: int
) -> Tensor:
    """The gradient of z, from those of mean and variance, each (C,); ``mean`` as ``upsampled_moments`` gave it."""
    batch, frames, bands, taps, channels = z.shape
    grad_z = like(z)
    slope, offset = gradient_of_moments(bins * batch * frames, mean, grad_mean, grad_var)
    tables = band_blocks(bands, bins, z.dtype, z.device)
    blocks, m, k = tables.around.shape
    chunk = chunk_of(batch * frames, blocks, z.device)
    groups = triton.cdiv(batch * frames, chunk)

    def cost() -> Cost:
        flop = 2 * 2 * batch * frames * bins * 6 * channels  # map and transposed map
        read = batch * frames * blocks * k * channels * z.element_size()
        l2 = read + groups * size(tables.around) + size(grad_z)
        return Cost((min(chunk, batch * frames),), flop, l2_bytes=l2, dram_bytes=size(z, grad_z))

    launch(
        upsampled_moments_backward_kernel,
        blocks * groups,
        cost,
        num_warps=4,
        p_z=z.contiguous(),
        p_around=tables.around,
        p_ones=tables.ones,
        p_bounds=tables.bounds,
        p_slope=slope,
        p_offset=offset,
        p_grad_z=grad_z,
        total=batch * frames,
        blocks=blocks,
        chunk=chunk,
        ROWS=taps * bands,
        C=channels,
        M=m,
        K=k,
        PRECISION=dot_precision(z),
    )
    return grad_z


def _shapes(grad_mean: Tensor, grad_var: Tensor, z: Tensor, mean: Tensor, bins: int) -> Tensor:
    return like(z)


upsampled_moments_backward = operator("upsampled_moments_backward", launch_upsampled_moments_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    z, ctx.bins = inputs
    ctx.save_for_backward(z, output[0])


def _gradient(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:
    return upsampled_moments_backward(grad_mean, grad_var, *ctx.saved_tensors, ctx.bins), None


upsampled_moments.register_autograd(_gradient, setup_context=_keep)
