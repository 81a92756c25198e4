"""Batch statistics of the upsampled convolution; the upsampled tensor is never made.

A program multiplies 64 bins by 64 rows of z a frame (as ``mask_head``) and keeps, for each bin and channel, sums of
what lies above the value of its first frame, and of the squares: no digits are lost where the mean is far from zero.
Programs leave counts, means and sums of squared deviations, which are put together as Chan, Golub and LeVeque 1983
("Algorithms for computing the sample variance") do; parts of other ranks can join there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import Cost, chunk_of, dot_precision, launch, size
from fastenh_kernels.shared.moments import combined_moments
from fastenh_kernels.shared.operators import operator
from fastenh_kernels.shared.upsampling import upsampling_blocks

_BINS = {2: 64, 4: 32}  # bytes of a value: bins of a program


@triton.jit(do_not_specialize=["total", "blocks", "chunk"])
def upsampled_moments_kernel(
    p_z,  # (B, T, ROWS, C), contiguous
    p_map,  # (blocks, N, K)
    p_starts,  # (blocks,), first row of z of a block
    p_parts,  # (programs, 2 C + 1): means, sums of squared deviations, count
    total,  # B * T
    blocks,
    chunk,  # frames of a program
    ROWS: tl.constexpr,
    BINS: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block = tl.program_id(0) % blocks
    first = (tl.program_id(0) // blocks).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, total)
    o_n, o_k, o_c = tl.arange(0, N), tl.arange(0, K), tl.arange(0, C)
    o_row = tl.load(p_starts + i_block) + o_k
    b_map = tl.load(p_map + (i_block * N + o_n[:, None]) * K + o_k[None, :])  # [N, K]
    p_rows = p_z + o_row[:, None] * C + o_c[None, :]
    m_rows = (o_row < ROWS)[:, None]
    b_z = tl.load(p_rows + first * (ROWS * C), mask=m_rows, other=0.0)  # [K, C]
    b_first = tl.dot(b_map, b_z, input_precision=PRECISION)  # [N, C]
    b_sum = tl.zeros([N, C], tl.float32)
    b_square = tl.zeros([N, C], tl.float32)
    for i_frame in tl.range(first + 1, last):
        b_z = tl.load(p_rows + i_frame * (ROWS * C), mask=m_rows, other=0.0)
        b_above = tl.dot(b_map, b_z, input_precision=PRECISION) - b_first
        b_sum += b_above
        b_square += b_above * b_above
    count = (last - first).to(tl.float32)
    bins = tl.minimum(BINS - i_block * N, N).to(tl.float32)
    m = (i_block * N + o_n < BINS)[:, None]
    b_mean = b_first + b_sum / count
    b_square -= b_sum * b_sum / count
    b_all = tl.sum(tl.where(m, b_mean, 0.0), 0) / bins  # [C]
    b_apart = b_mean - b_all[None, :]
    b_square = tl.sum(tl.where(m, b_square + count * b_apart * b_apart, 0.0), 0)
    p_part = p_parts + tl.program_id(0).to(tl.int64) * (2 * C + 1)
    tl.store(p_part + o_c, b_all)
    tl.store(p_part + C + o_c, b_square)
    tl.store(p_part + 2 * C, count * bins)


def launch_upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Mean and variance, each (C,), in float32."""
    batch, frames, bands, taps, channels = z.shape
    table, starts = upsampling_blocks(bands, bins, _BINS[z.element_size()], z.dtype, z.device)
    blocks, block, inner = table.shape
    chunk = chunk_of(batch * frames, blocks, z.device)
    groups = triton.cdiv(batch * frames, chunk)
    parts = torch.empty(blocks * groups, 2 * channels + 1, dtype=torch.float32, device=z.device)

    def cost() -> Cost:
        flop = 2 * batch * frames * bins * 6 * channels  # of the entries that are not zero
        read = batch * frames * blocks * inner * channels * z.element_size()
        l2 = read + groups * size(table) + size(parts)
        return Cost((min(chunk, batch * frames) - 1,), flop, l2_bytes=l2, dram_bytes=size(z, parts))

    launch(
        upsampled_moments_kernel,
        blocks * groups,
        cost,
        num_warps=8 if z.element_size() == 4 else 4,
        p_z=z.contiguous(),
        p_map=table,
        p_starts=starts,
        p_parts=parts,
        total=batch * frames,
        blocks=blocks,
        chunk=chunk,
        ROWS=taps * bands,
        BINS=bins,
        C=channels,
        N=block,
        K=inner,
        PRECISION=dot_precision(z),
    )
    return combined_moments(parts)


def _shapes(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    mean = z.new_empty(z.shape[4], dtype=torch.float32)
    return mean, torch.empty_like(mean)


upsampled_moments = operator("upsampled_moments", launch_upsampled_moments, _shapes)
