"""Attention forward, one program for a whole sequence of one head: up to 192 positions.

Keys and values stay on chip and are read once, and the softmax needs no running maximum. The keys are held as two
blocks (64 + 16 for 65 bands, 128 + 64 for 188 frames): rows and keys padded to 128 or 256 would cost 2.6 and 1.8 times
the exponentials.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.scores import attention_cost, scores
from fastenh_kernels.operations.axis_attention.tiles import in_tiles, load_positions, start, store_positions, tiles_of
from fastenh_kernels.shared.dropout import ROW, WEIGHTS, drop, key_of
from fastenh_kernels.shared.launch import launch, warpgroups
from fastenh_kernels.shared.rows import has_descriptors


class Resident(NamedTuple):
    """How ``resident_attention_kernel`` takes sequences of up to some length."""

    keys0: int  # of the first block
    keys1: int  # of the second block
    rows: int  # at a time
    warps: int


_RESIDENT = {  # by the longest sequence
    16: Resident(16, 0, 16, 1),
    32: Resident(32, 0, 32, 2),
    64: Resident(64, 0, 64, 4),
    80: Resident(64, 16, 32, 1),
    128: Resident(64, 64, 64, 4),
    192: Resident(128, 64, 64, 4),
}


@triton.jit
def _resident_rows(
    p_qkv, p_out, p_lse, key, first, length, place, column, s_qkv, place_out, column_out, s_out, b_k0, b_v0, b_k1, b_v1,
    K0: tl.constexpr, K1: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, FULL: tl.constexpr,
    WHOLE: tl.constexpr, LSE: tl.constexpr, DESCRIPTORS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first + M``, all of them there where WHOLE, against all keys."""
    o_m = first + tl.arange(0, M)
    b_q = load_positions(p_qkv, place, first, column, length, s_qkv, M, D, WHOLE, DESCRIPTORS)  # [M, D]
    b_s0 = scores(b_q, b_k0, tl.arange(0, K0), length, FULL, PRECISION)  # [M, K0]
    b_max = tl.max(b_s0, 1)
    if K1 > 0:
        b_s1 = scores(b_q, b_k1, K0 + tl.arange(0, K1), length, False, PRECISION)  # [M, K1]
        b_max = tl.maximum(b_max, tl.max(b_s1, 1))
    b_max = b_max * SCALE
    b_p0 = tl.exp2(b_s0 * SCALE - b_max[:, None])
    b_sum = tl.sum(b_p0, 1)
    if DROPOUT > 0:
        b_p0 = drop(b_p0, key, (o_m * ROW)[:, None], tl.arange(0, K0)[None, :], 8, DROPOUT)
    b_out = tl.dot(b_p0.to(b_v0.dtype), b_v0, input_precision=PRECISION)  # [M, D]
    if K1 > 0:
        b_p1 = tl.exp2(b_s1 * SCALE - b_max[:, None])
        b_sum += tl.sum(b_p1, 1)
        if DROPOUT > 0:
            b_p1 = drop(b_p1, key, (o_m * ROW)[:, None], K0 + tl.arange(0, K1)[None, :], 8, DROPOUT)
        b_out = tl.dot(b_p1.to(b_v1.dtype), b_v1, b_out, input_precision=PRECISION)
    b_out = b_out * (1.0 / b_sum)[:, None]
    store_positions(p_out, b_out, place_out, first, column_out, length, s_out, WHOLE, DESCRIPTORS)
    if LSE:
        tl.store(p_lse + o_m, b_max + tl.log2(b_sum), mask=(o_m < length) | WHOLE)


@triton.jit(do_not_specialize=["inner", "length"])
def resident_attention_kernel(
    p_qkv,  # (outer, inner, length, 3, H, D) by strides, or its descriptor
    p_keys,  # the same, in tiles of K0
    p_out,  # (outer, inner, length, H, D) by strides, or its descriptor
    p_lse,  # (sequences * H, length): logarithm of the softmax sums to base 2, written where LSE
    p_seed,  # (1,), of the dropout
    inner,
    length,
    s_qkv_outer,
    s_qkv_inner,
    s_qkv,
    s_out_outer,
    s_out_inner,
    s_out,
    H: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    K0: tl.constexpr,
    K1: tl.constexpr,
    M: tl.constexpr,
    TAIL: tl.constexpr,
    FULL: tl.constexpr,
    LSE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    key = key_of(p_seed, WEIGHTS, tl.program_id(0), DROPOUT)
    i_head = tl.program_id(0) % H
    i_sequence = tl.program_id(0) // H
    i_outer, i_inner = (i_sequence // inner).to(tl.int64), (i_sequence % inner).to(tl.int64)
    C: tl.constexpr = H * D
    place, column = start(i_outer, i_inner, i_head, s_qkv_outer, s_qkv_inner, 3 * C, D, DESCRIPTORS)
    place_out, column_out = start(i_outer, i_inner, i_head, s_out_outer, s_out_inner, C, D, DESCRIPTORS)
    p_lse += tl.program_id(0).to(tl.int64) * length
    b_k0 = load_positions(p_keys, place, 0, column + C, length, s_qkv, K0, D, False, DESCRIPTORS)  # [K0, D]
    b_v0 = load_positions(p_keys, place, 0, column + 2 * C, length, s_qkv, K0, D, False, DESCRIPTORS)
    if K1 > 0:
        b_k1 = load_positions(p_qkv, place, K0, column + C, length, s_qkv, K1, D, False, DESCRIPTORS)  # [K1, D]
        b_v1 = load_positions(p_qkv, place, K0, column + 2 * C, length, s_qkv, K1, D, False, DESCRIPTORS)
    else:
        b_k1, b_v1 = b_k0, b_v0
    whole = length if TAIL == 0 else length // M * M
    for first in tl.range(0, whole, M):
        _resident_rows(
            p_qkv, p_out, p_lse, key, first, length, place, column, s_qkv, place_out, column_out, s_out,
            b_k0, b_v0, b_k1, b_v1, K0, K1, M, D, SCALE, FULL, TAIL > 0, LSE, DESCRIPTORS, DROPOUT, PRECISION,
        )  # fmt: skip
    if TAIL > 0:
        _resident_rows(
            p_qkv, p_out, p_lse, key, whole, length, place, column, s_qkv, place_out, column_out, s_out,
            b_k0, b_v0, b_k1, b_v1, K0, K1, TAIL, D, SCALE, FULL, False, LSE, DESCRIPTORS, DROPOUT, PRECISION,
        )  # fmt: skip


def resident_sizes(qkv: Tensor, width: int, length: int, dropout: float) -> Resident | None:
    """How a program takes a whole sequence; None where that needs too many registers."""
    one_block = qkv.element_size() == 4 or (dropout > 0 and not warpgroups(qkv.device))  # two spill
    for longest, sizes in _RESIDENT.items():
        keys = sizes.keys0 + sizes.keys1
        if length <= longest and width * keys <= 128 * 64 and not (sizes.keys1 and one_block):
            return sizes
    return None


def launch_resident(
    programs: int, sizes: Resident, qkv: Tensor, out: Tensor, axis: str, common: dict[str, Any]
) -> None:
    length = common["length"]
    tail = 16 if sizes.keys1 == 16 else 0  # 65 bands: 64 rows and one more
    descriptors = has_descriptors(qkv) and not tail and sizes.keys1 in (0, sizes.rows)
    keys = tiles_of(qkv, axis, sizes.keys0, common["D"]) if descriptors else qkv
    loops = (length // sizes.rows if tail else triton.cdiv(length, sizes.rows),)
    launch(
        resident_attention_kernel,
        programs,
        lambda: attention_cost(qkv, out, length, loops),
        num_warps=sizes.warps,
        **(common | in_tiles(common, axis, sizes.rows) if descriptors else common),
        p_keys=keys,
        K0=sizes.keys0,
        K1=sizes.keys1,
        M=sizes.rows,
        TAIL=tail,
        FULL=length >= sizes.keys0,
        DESCRIPTORS=descriptors,
    )
