"""Convolutions over the bands of one frame, on the chip: a tile holds all bands, so that no program needs another's."""

from __future__ import annotations

import triton
import triton.language as tl

from fastenh_kernels.shared.norm import row_of

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def tanh_of_16_bit(b_x):
    """To 2^-11 of the result, float32: one instruction of the special function unit (PTX ISA, "tanh")."""
    if INTERPRETED:  # has no instructions; as exact, by rounding
        b_y = 1.0 - 2.0 / (1.0 + tl.exp2(b_x * 2.8853900817779268))
        b_bits = (b_y.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        b_y = b_bits.to(tl.float32, bitcast=True)
    else:
        b_y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [b_x], tl.float32, is_pure=True, pack=1)
    return b_y


@triton.jit
def log2(b_x):
    """Of normal numbers, to 2^-22 of it or, near 1, of 1: one instruction, where Triton's own is twenty."""
    if INTERPRETED:
        b_y = tl.log2(b_x)
    else:
        b_y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=r,r", [b_x], tl.float32, is_pure=True, pack=1)
    return b_y


@triton.jit
def silu(b_x, dtype: tl.constexpr):
    """Of float32, to be rounded to ``dtype``."""
    return silu_of_twice(b_x * 0.5, dtype)


@triton.jit
def silu_of_twice(b_half, dtype: tl.constexpr):
    """SiLU of 2 x. In 16 bit it is x + x tanh(x), one special instruction; else the sigmoid by the reciprocal root, two
    of them, where a division would be a dozen others."""
    if dtype == tl.float32:
        b_root = tl.rsqrt(1.0 + tl.exp2(b_half * -2.8853900817779268))
        b_y = 2.0 * b_half * b_root * b_root
    else:
        b_y = b_half * tanh_of_16_bit(b_half) + b_half
    return b_y


@triton.jit
def silu_with_slope(b_z, dtype: tl.constexpr):
    """SiLU and its derivative, of float32, to be rounded to ``dtype``."""
    if dtype == tl.float32:
        b_root = tl.rsqrt(1.0 + tl.exp2(b_z * -1.4426950408889634))
        b_gate = b_root * b_root
    else:
        b_gate = 0.5 * tanh_of_16_bit(0.5 * b_z) + 0.5
    b_silu = b_z * b_gate
    return b_silu, b_gate + b_silu * (1.0 - b_gate)


@triton.jit
def shifted(b_x, BY: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Row m is row m + BY of [M, N], zeros from outside."""
    o = tl.arange(0, M) + BY
    o_row = tl.broadcast_to(tl.minimum(tl.maximum(o, 0), M - 1)[:, None], (M, N))
    return tl.where(((o >= 0) & (o < M))[:, None], tl.gather(b_x, o_row, 0), tl.zeros([1, 1], b_x.dtype))


@triton.jit
def paired(b_low, b_high):
    """32 bits of twice 16: registers hold neighbouring values so anyway."""
    if INTERPRETED:
        b = b_low.to(tl.uint32) | (b_high.to(tl.uint32) << 16)
    else:
        b = tl.inline_asm_elementwise("mov.b32 $0, {$1, $2};", "=r,h,h", [b_low, b_high], tl.uint32, True, 1)
    return b


@triton.jit
def parted(b):
    """The inverse of ``paired``."""
    if INTERPRETED:
        b_low, b_high = b.to(tl.uint16), (b >> 16).to(tl.uint16)
    else:
        b_low, b_high = tl.inline_asm_elementwise(
            "mov.b32 {$0, $1}, $2;", "=h,=h,r", [b], (tl.uint16, tl.uint16), True, 1
        )
    return b_low, b_high


@triton.jit
def exchanged(b_x, M: tl.constexpr, C: tl.constexpr):
    """[M, C] twice: each band's lower and upper neighbour, zeros from outside. In 16 bit the threads exchange two
    channels at a time."""
    if b_x.dtype == tl.float32:
        b_lower, b_upper = shifted(b_x, -1, M, C), shifted(b_x, 1, M, C)
    else:
        b_even, b_odd = tl.split(tl.reshape(b_x.to(tl.uint16, bitcast=True), (M, C // 2, 2)))
        b_pairs = paired(b_even, b_odd)
        b_even, b_odd = parted(shifted(b_pairs, -1, M, C // 2))
        b_lower = tl.reshape(tl.join(b_even, b_odd), (M, C)).to(b_x.dtype, bitcast=True)
        b_even, b_odd = parted(shifted(b_pairs, 1, M, C // 2))
        b_upper = tl.reshape(tl.join(b_even, b_odd), (M, C)).to(b_x.dtype, bitcast=True)
    return b_lower, b_upper


@triton.jit
def neighbours_of(p_x, m_there, M: tl.constexpr, C: tl.constexpr):
    """[M, C] twice of a frame in memory: each band's lower and upper neighbour, zeros from outside and where not
    ``m_there``. What is loaded again is in a cache; the threads would exchange it by way of shared memory."""
    o = tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
    b_lower = tl.load(p_x - C + o, mask=(o >= C) & m_there, other=0.0)
    return b_lower, tl.load(p_x + C + o, mask=(o < (M - 1) * C) & m_there, other=0.0)


@triton.jit
def matrix_of(p_weight, OUT: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr):
    """[IN, OUT] of a linear map's weight (OUT, IN), rows STEP apart."""
    return tl.load(p_weight + tl.arange(0, OUT)[None, :] * STEP + tl.arange(0, IN)[:, None])


@triton.jit
def three_taps(p_weight, p_bias, C: tl.constexpr):
    """Halves of three [C, C] of the weight (C, C, 3) of a convolution and of its bias [1, C], as SiLU takes them."""
    o = tl.arange(0, C)
    p = p_weight + o[None, :] * (3 * C) + o[:, None] * 3
    return tl.load(p) * 0.5, tl.load(p + 1) * 0.5, tl.load(p + 2) * 0.5, row_of(p_bias, o) * 0.5


@triton.jit
def convolve_bands(b_x, b_lower, b_upper, taps, PRECISION: tl.constexpr):
    """[M, C] in the dtype of the taps: the convolution over three bands, with its bias and SiLU, of [M, C] and of its
    lower and upper neighbours."""
    b_y = tl.dot(b_x, taps[1], input_precision=PRECISION)
    b_y = tl.dot(b_lower, taps[0], b_y, input_precision=PRECISION)
    b_y = tl.dot(b_upper, taps[2], b_y, input_precision=PRECISION)
    return silu_of_twice(b_y + taps[3], taps[1].dtype).to(taps[1].dtype)
