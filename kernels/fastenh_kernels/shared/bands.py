"""Convolutions over the bands of one frame, on the chip: a tile holds all bands, so that no program needs another's."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(b_x):
    """By the reciprocal root, one instruction; a division is a dozen."""
    b_root = tl.rsqrt(1.0 + tl.exp2(b_x * -1.4426950408889634))
    return b_x * b_root * b_root


@triton.jit
def silu_with_slope(b_z):
    """SiLU and its derivative."""
    b_root = tl.rsqrt(1.0 + tl.exp2(b_z * -1.4426950408889634))
    b_gate = b_root * b_root
    b_silu = b_z * b_gate
    return b_silu, b_gate + b_silu * (1.0 - b_gate)


@triton.jit
def shifted(b_x, BY: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Row m is row m + BY of [M, N], zeros from outside."""
    o = tl.arange(0, M) + BY
    o_row = tl.broadcast_to(tl.minimum(tl.maximum(o, 0), M - 1)[:, None], (M, N))
    return tl.where(((o >= 0) & (o < M))[:, None], tl.gather(b_x, o_row, 0), 0.0)


@triton.jit
def matrix_of(p_weight, OUT: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr):
    """[IN, OUT] of a linear map's weight (OUT, IN), rows STEP apart."""
    return tl.load(p_weight + tl.arange(0, OUT)[None, :] * STEP + tl.arange(0, IN)[:, None])


@triton.jit
def three_taps(p_weight, C: tl.constexpr):
    """Three [C, C] of the weight (C, C, 3) of a convolution."""
    o = tl.arange(0, C)
    p = p_weight + o[None, :] * (3 * C) + o[:, None] * 3
    return tl.load(p), tl.load(p + 1), tl.load(p + 2)


@triton.jit
def convolve_bands(b_x, taps, b_bias, M: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr):
    """[M, C] float32: the convolution over three bands, with its bias and SiLU, of [M, C]."""
    b_y = tl.dot(b_x, taps[1], input_precision=PRECISION)
    b_y = tl.dot(shifted(b_x, -1, M, C), taps[0], b_y, input_precision=PRECISION)
    b_y = tl.dot(shifted(b_x, 1, M, C), taps[2], b_y, input_precision=PRECISION)
    return silu(b_y + b_bias)
