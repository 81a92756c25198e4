"""Moments of a batch norm in training: the parts that programs leave, their sum, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import Cost, launch, size

_CHANNELS, _PARTS = 2, 64  # of a program that puts parts together, at a time


@triton.jit
def store_moments(p_part, b_first, b_sum, b_square, count, M: tl.constexpr, C: tl.constexpr):
    """Mean and sum of squared deviations of each of C channels, and the number of values, at p_part (2 C + 1).

    Of ``count`` values at each of M places: b_first, the first of them; b_sum and b_square, the sums of what lies above
    it and of the squares of that, [M, C]. So no digits are lost where the mean is far from zero.
    """
    o_c = tl.arange(0, C)
    b_square -= b_sum * b_sum / count
    b_mean = b_first + b_sum / count
    b_all = tl.sum(b_mean, 0) / M  # [C]
    b_mean -= b_all[None, :]
    tl.store(p_part + o_c, b_all)
    tl.store(p_part + C + o_c, tl.sum(b_square + count * b_mean * b_mean, 0))
    tl.store(p_part + 2 * C, count * M)


@triton.jit(do_not_specialize=["parts"])
def combine_moments_kernel(
    p_parts,  # (parts, 2 C + 1), as ``store_moments`` leaves them
    p_mean,  # (C,), written
    p_var,  # (C,), written
    parts,
    C: tl.constexpr,
    M: tl.constexpr,  # channels of a program
    BLOCK: tl.constexpr,
):
    o_c, o_p = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK)
    # means are taken from that of the first part on, so that no digits are lost
    b_first = tl.load(p_parts + o_c, mask=(o_c < C) & (parts > 0), other=0.0)[None, :]
    b_count = tl.zeros([BLOCK], tl.float32)
    b_sum, b_square = tl.zeros([BLOCK, M], tl.float32), tl.zeros([BLOCK, M], tl.float32)
    for first in tl.range(0, parts, BLOCK):
        m = first + o_p < parts
        p_part = p_parts + (first + o_p) * (2 * C + 1)
        b_number = tl.load(p_part + 2 * C, mask=m, other=0.0)
        b_mean = tl.load(p_part[:, None] + o_c[None, :], mask=m[:, None], other=0.0) - b_first
        b_weighted = b_number[:, None] * b_mean
        b_count += b_number
        b_sum += b_weighted
        b_square += b_weighted * b_mean
        b_square += tl.load(p_part[:, None] + (C + o_c)[None, :], mask=m[:, None], other=0.0)
    count = tl.maximum(tl.sum(b_count, 0), 1.0)
    b_mean = tl.sum(b_sum, 0) / count
    tl.store(p_mean + o_c, tl.sum(b_first, 0) + b_mean)
    tl.store(p_var + o_c, tl.maximum(tl.sum(b_square, 0) / count - b_mean * b_mean, 0.0))


def combined_moments(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance, each (C,), of parts (P, 2 C + 1) as ``store_moments`` leaves them (Chan et al. 1979,
    "Updating formulae")."""
    count, channels = parts.shape[0], parts.shape[1] // 2
    mean, var = parts.new_empty(channels), parts.new_empty(channels)
    launch(
        combine_moments_kernel,
        triton.cdiv(channels, _CHANNELS),
        lambda: Cost((triton.cdiv(count, _PARTS),), flop=0, l2_bytes=size(parts), dram_bytes=size(parts)),
        num_warps=1,
        p_parts=parts,
        p_mean=mean,
        p_var=var,
        parts=count,
        C=channels,
        M=_CHANNELS,
        BLOCK=_PARTS,
    )
    return mean, var


def gradient_of_moments(count: int, mean: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset, each (C,): the moments of ``count`` values y add slope * y + offset to their gradient."""
    slope = 2 / max(1, count) * grad_var
    return slope, grad_mean / max(1, count) - slope * mean
