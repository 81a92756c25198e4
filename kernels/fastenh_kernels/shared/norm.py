"""Layer norm of rows on the chip (Ba et al. 2016, "Layer normalization"), and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl

EPS = 1e-5


@triton.jit
def row_of(p, o):
    """[1, N] float32."""
    return tl.load(p + o).to(tl.float32)[None, :]


@triton.jit
def affine_of(p_affine, C: tl.constexpr):
    """Scale and shift, [1, C] float32 each."""
    o_c = tl.arange(0, C)
    return row_of(p_affine, o_c), row_of(p_affine + C, o_c)


@triton.jit
def norm_of(p_weight, p_bias, o_c, FOLDED: tl.constexpr, LEVEL: tl.constexpr):
    """Weight and bias [1, C] of a norm; 1 and LEVEL where they are folded into what follows."""
    return (1.0, LEVEL) if FOLDED else (row_of(p_weight, o_c), row_of(p_bias, o_c))


@triton.jit
def normalise(b_x, b_weight, b_bias, C: tl.constexpr, EPS: tl.constexpr):
    """Layer norm of [M, C] float32 rows; weight and bias [1, C], or numbers."""
    b_x, _ = standardise(b_x, C, EPS)
    return b_x * b_weight + b_bias


@triton.jit
def standardise(b_x, C: tl.constexpr, EPS: tl.constexpr):
    """[M, C] rows of mean 0 and deviation 1, and the [M] factors that made them so."""
    b_x = b_x - (tl.sum(b_x, 1) / C)[:, None]
    b_inverse = tl.rsqrt(tl.sum(b_x * b_x, 1) / C + EPS)
    return b_x * b_inverse[:, None], b_inverse


@triton.jit
def through_norm(b_dn, b_standard, b_inverse, b_weight, C: tl.constexpr):
    """The gradient of a layer norm's input, from that of its output."""
    b_dn = b_dn * b_weight
    b_mean = tl.sum(b_dn, 1) / C
    b_slope = tl.sum(b_dn * b_standard, 1) / C
    return (b_dn - b_mean[:, None] - b_standard * b_slope[:, None]) * b_inverse[:, None]
