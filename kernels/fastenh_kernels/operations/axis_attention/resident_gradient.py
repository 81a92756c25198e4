"""The gradient of ``axis_attention`` for short sequences: a program takes a whole sequence of one head.

The rows stay on chip, in up to three blocks, and the keys come block by block, so that every exponential is taken once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.tiles import in_tiles, load_positions, start, store_positions
from fastenh_kernels.shared.dropout import ROW, WEIGHTS, keeps, key_of
from fastenh_kernels.shared.launch import Cost, launch, size, warpgroups
from fastenh_kernels.shared.rows import has_descriptors


class Blocks(NamedTuple):
    """How ``resident_gradient_kernel`` takes sequences of up to some length."""

    rows0: int  # of the first block
    rows1: int  # of the second block
    rows2: int  # of the third block
    keys: int  # at a time
    warps: int

    @property
    def rows(self) -> int:
        return self.rows0 + self.rows1 + self.rows2


_RESIDENT = {  # by the longest sequence
    16: Blocks(16, 0, 0, 16, 1),
    32: Blocks(32, 0, 0, 16, 2),
    64: Blocks(64, 0, 0, 64, 4),
    80: Blocks(64, 16, 0, 16, 1),
    128: Blocks(64, 64, 0, 64, 4),
    192: Blocks(64, 64, 64, 64, 4),
}


@triton.jit
def _pair(b_q, b_do, p_row, key, o_m, first, length, b_k, b_v, b_dk, b_dv, b_dq, SCALE: tl.constexpr,
          PADDED: tl.constexpr, ROUNDED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A block of rows and a block of keys: their part of dk, dv [N, D] and of dq, transposed: [D, M].

    ROUNDED: weights and their gradients are multiplied in 16 bit, so that three blocks of rows fit the registers (5
    spill instructions otherwise); dq is 1.7 times as far off then.
    """
    b_lse = tl.load(p_row + o_m)
    b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [N, M]
    # A weight is at most 1; that of a key behind the end (zeros) must be finite, to vanish in dq.
    b_p = tl.exp2(tl.minimum(b_s * SCALE - b_lse[None, :], 0.0))
    if ROUNDED and DROPOUT == 0:
        b_p = b_p.to(b_do.dtype)
    b_delta = tl.load(p_row + PADDED + o_m)
    if DROPOUT > 0:
        o_row = (o_m * ROW + first)[None, :]
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_kept = keeps(key, o_row, tl.arange(0, b_k.shape[0])[:, None], 8, DROPOUT)
        b_ds = (b_p * (tl.where(b_kept, b_dp, 0.0) - b_delta[None, :])).to(b_q.dtype)
        b_dv = tl.dot(tl.where(b_kept, b_p, 0.0).to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
    else:
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_do), tl.zeros_like(b_s) - b_delta[None, :], input_precision=PRECISION)
        if ROUNDED:
            b_dp = b_dp.to(b_q.dtype)
        b_ds = (b_p * b_dp).to(b_q.dtype)
    b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    b_dq = tl.dot(tl.trans(b_k), b_ds, b_dq, input_precision=PRECISION)
    return b_dk, b_dv, b_dq


@triton.jit(do_not_specialize=["inner", "length"])
def resident_gradient_kernel(
    p_qkv,  # (outer, inner, length, 3, H, D) by strides, or its descriptor (``tiles``)
    p_grad_out,  # (outer, inner, length, H, D) by strides, or its descriptor
    p_grad_qkv,  # as qkv
    p_statistics,  # (sequences * H, 2, PADDED)
    p_seed,  # (1,), of the dropout
    inner,
    length,
    s_outer,
    s_inner,
    s,
    s_out_outer,
    s_out_inner,
    s_out,
    H: tl.constexpr,
    D: tl.constexpr,
    ROOT: tl.constexpr,  # 1 / sqrt(D)
    SCALE: tl.constexpr,  # the same times log2(e)
    M0: tl.constexpr,
    M1: tl.constexpr,
    M2: tl.constexpr,
    N: tl.constexpr,
    PADDED: tl.constexpr,
    LARGER: tl.constexpr,  # kept weights, and what goes with them
    DESCRIPTORS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    key = key_of(p_seed, WEIGHTS, tl.program_id(0), DROPOUT)
    i_head = tl.program_id(0) % H
    i_sequence = tl.program_id(0) // H
    i_outer, i_inner = (i_sequence // inner).to(tl.int64), (i_sequence % inner).to(tl.int64)
    C: tl.constexpr = H * D
    place, column = start(i_outer, i_inner, i_head, s_outer, s_inner, 3 * C, D, DESCRIPTORS)
    place_out, column_out = start(i_outer, i_inner, i_head, s_out_outer, s_out_inner, C, D, DESCRIPTORS)
    p_row = p_statistics + tl.program_id(0).to(tl.int64) * (2 * PADDED)
    b_q0 = load_positions(p_qkv, place, 0, column, length, s, M0, D, M1 > 0, DESCRIPTORS)
    b_do0 = load_positions(p_grad_out, place_out, 0, column_out, length, s_out, M0, D, M1 > 0, DESCRIPTORS)
    b_dq0 = tl.zeros([D, M0], tl.float32)
    b_q1, b_do1, b_dq1, b_q2, b_do2, b_dq2 = b_q0, b_do0, b_dq0, b_q0, b_do0, b_dq0
    if M1 > 0:
        b_q1 = load_positions(p_qkv, place, M0, column, length, s, M1, D, M2 > 0, DESCRIPTORS)
        b_do1 = load_positions(p_grad_out, place_out, M0, column_out, length, s_out, M1, D, M2 > 0, DESCRIPTORS)
        b_dq1 = tl.zeros([D, M1], tl.float32)
    if M2 > 0:
        b_q2 = load_positions(p_qkv, place, M0 + M1, column, length, s, M2, D, False, DESCRIPTORS)
        b_do2 = load_positions(p_grad_out, place_out, M0 + M1, column_out, length, s_out, M2, D, False, DESCRIPTORS)
        b_dq2 = tl.zeros([D, M2], tl.float32)
    for first in tl.range(0, length, N, disable_licm=DROPOUT > 0):
        b_k = load_positions(p_qkv, place, first, column + C, length, s, N, D, False, DESCRIPTORS)  # [N, D]
        b_v = load_positions(p_qkv, place, first, column + 2 * C, length, s, N, D, False, DESCRIPTORS)
        b_dk = tl.zeros([N, D], tl.float32)
        b_dv = tl.zeros([N, D], tl.float32)
        b_dk, b_dv, b_dq0 = _pair(
            b_q0, b_do0, p_row, key, tl.arange(0, M0), first, length, b_k, b_v, b_dk, b_dv, b_dq0, SCALE, PADDED,
            M2 > 0, DROPOUT, PRECISION,
        )  # fmt: skip
        if M1 > 0:
            b_dk, b_dv, b_dq1 = _pair(
                b_q1, b_do1, p_row, key, M0 + tl.arange(0, M1), first, length, b_k, b_v, b_dk, b_dv, b_dq1,
                SCALE, PADDED, M2 > 0, DROPOUT, PRECISION,
            )  # fmt: skip
        if M2 > 0:
            b_dk, b_dv, b_dq2 = _pair(
                b_q2, b_do2, p_row, key, M0 + M1 + tl.arange(0, M2), first, length, b_k, b_v, b_dk, b_dv, b_dq2,
                SCALE, PADDED, M2 > 0, DROPOUT, PRECISION,
            )  # fmt: skip
        store_positions(p_grad_qkv, b_dk * ROOT, place, first, column + C, length, s, False, DESCRIPTORS)
        store_positions(p_grad_qkv, b_dv * LARGER, place, first, column + 2 * C, length, s, False, DESCRIPTORS)
    dtype: tl.constexpr = b_q0.dtype
    b_dq0 = tl.trans((b_dq0 * ROOT).to(dtype))
    store_positions(p_grad_qkv, b_dq0, place, 0, column, length, s, M1 > 0, DESCRIPTORS)
    if M1 > 0:
        b_dq1 = tl.trans((b_dq1 * ROOT).to(dtype))
        store_positions(p_grad_qkv, b_dq1, place, M0, column, length, s, M2 > 0, DESCRIPTORS)
    if M2 > 0:
        b_dq2 = tl.trans((b_dq2 * ROOT).to(dtype))
        store_positions(p_grad_qkv, b_dq2, place, M0 + M1, column, length, s, False, DESCRIPTORS)


def resident_blocks(qkv: Tensor, width: int, length: int, dropout: float) -> Blocks | None:
    """How a program takes a whole sequence; None where that needs too many registers."""
    short = 64 if not warpgroups(qkv.device) else 80 if dropout else max(_RESIDENT)
    if qkv.element_size() == 4 or width > 32 or length > short:
        return None
    return next(sizes for longest, sizes in _RESIDENT.items() if length <= longest)


def launch_resident_gradient(
    programs: int, sizes: Blocks, grad_out: Tensor, statistics: Tensor, axis: str, common: dict[str, Any]
) -> None:
    length = common["length"]
    qkv, alike = common["p_qkv"], {sizes.rows0, sizes.keys} | ({sizes.rows1, sizes.rows2} - {0})
    descriptors = has_descriptors(qkv) and len(alike) == 1

    def cost() -> Cost:
        moved = size(qkv, common["p_grad_qkv"], grad_out, statistics)
        loops = (triton.cdiv(length, sizes.keys),)
        return Cost(loops, flop=10 * grad_out.numel() * length, l2_bytes=moved, dram_bytes=moved)

    launch(
        resident_gradient_kernel,
        programs,
        cost,
        num_warps=sizes.warps,
        num_stages=2 if common["DROPOUT"] else 1,  # one stage spills with dropout in Triton 3.6
        **(common | in_tiles(common, axis, sizes.keys) if descriptors else common),
        M0=sizes.rows0,
        M1=sizes.rows1,
        M2=sizes.rows2,
        N=sizes.keys,
        PADDED=statistics.shape[2],
        DESCRIPTORS=descriptors,
    )
