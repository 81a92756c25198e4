"""Self-attention along one axis of packed projections (B, T, F, 3C), read by strides: nothing is moved or copied.

Two kernels. Up to 192 positions, one program takes a whole sequence of one head: keys and values stay on chip and are
read once, and the softmax needs no running maximum. The keys are held as two blocks (64 + 16 for 65 bands, 128 + 64
for 188 frames): rows and keys padded to 128 or 256 would cost 2.6 and 1.8 times the exponentials. Longer sequences
stream keys and values past a block of 64 rows (Dao et al. 2022, "FlashAttention").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.band import blocks_past_rows, in_band, keys_of_rows, mean_history
from fastenh_kernels.operations.axis_attention.sequences import dimensions, scale, softmax_sums, strides
from fastenh_kernels.shared.dropout import ROW, WEIGHTS, draw_seed, drop, key_of
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, size, tensor_memory, warpgroups
from fastenh_kernels.shared.operators import needs_gradient, operator


class _Resident(NamedTuple):
    """How ``resident_attention_kernel`` takes sequences of up to some length."""

    keys0: int  # of the first block
    keys1: int  # of the second block
    rows: int  # at a time
    warps: int


_RESIDENT = {  # by the longest sequence
    16: _Resident(16, 0, 16, 1),
    32: _Resident(32, 0, 32, 2),
    64: _Resident(64, 0, 64, 4),
    80: _Resident(64, 16, 32, 1),
    128: _Resident(64, 64, 64, 4),
    192: _Resident(128, 64, 64, 4),
}
_STREAMING = {2: (64, 64, 4), 4: (64, 32, 4)}  # bytes of a value: (rows, keys, warps)


@triton.jit
def _scores(b_q, b_k, o_k, length, FULL: tl.constexpr, PRECISION: tl.constexpr):
    """[M, N] scores; keys behind the end count as minus infinity."""
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    if not FULL:
        b_s = tl.where(o_k[None, :] < length, b_s, float("-inf"))
    return b_s


@triton.jit
def _resident_rows(
    p_qkv, p_out, p_lse, key, first, length, s_qkv, s_out, b_k0, b_v0, b_k1, b_v1,
    K0: tl.constexpr, K1: tl.constexpr, M: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, FULL: tl.constexpr,
    WHOLE: tl.constexpr, LSE: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first + M``, all of them there where WHOLE, against all keys."""
    o_m = first + tl.arange(0, M)
    o_d = tl.arange(0, D)
    m_m = (o_m < length)[:, None] | WHOLE
    b_q = tl.load(p_qkv + o_m[:, None] * s_qkv + o_d[None, :], mask=m_m, other=0.0)  # [M, D]
    b_s0 = _scores(b_q, b_k0, tl.arange(0, K0), length, FULL, PRECISION)  # [M, K0]
    b_max = tl.max(b_s0, 1)
    if K1 > 0:
        b_s1 = _scores(b_q, b_k1, K0 + tl.arange(0, K1), length, False, PRECISION)  # [M, K1]
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
    tl.store(p_out + o_m[:, None] * s_out + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_m)
    if LSE:
        tl.store(p_lse + o_m, b_max + tl.log2(b_sum), mask=(o_m < length) | WHOLE)


@triton.jit(do_not_specialize=["inner", "length"])
def resident_attention_kernel(
    p_qkv,  # (outer, inner, length, 3, H, D) by strides
    p_out,  # (outer, inner, length, H, D) by strides
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
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    key = key_of(p_seed, WEIGHTS, tl.program_id(0), DROPOUT)
    i_head = tl.program_id(0) % H
    i_sequence = tl.program_id(0) // H
    i_outer, i_inner = (i_sequence // inner).to(tl.int64), (i_sequence % inner).to(tl.int64)
    p_qkv += i_outer * s_qkv_outer + i_inner * s_qkv_inner + i_head * D
    p_out += i_outer * s_out_outer + i_inner * s_out_inner + i_head * D
    p_lse += tl.program_id(0).to(tl.int64) * length
    o_d = tl.arange(0, D)
    o_k0 = tl.arange(0, K0)
    p_k0 = p_qkv + o_k0[:, None] * s_qkv + o_d[None, :]
    b_k0 = tl.load(p_k0 + H * D, mask=o_k0[:, None] < length, other=0.0)  # [K0, D]
    b_v0 = tl.load(p_k0 + 2 * H * D, mask=o_k0[:, None] < length, other=0.0)
    if K1 > 0:
        o_k1 = K0 + tl.arange(0, K1)
        p_k1 = p_qkv + o_k1[:, None] * s_qkv + o_d[None, :]
        b_k1 = tl.load(p_k1 + H * D, mask=o_k1[:, None] < length, other=0.0)  # [K1, D]
        b_v1 = tl.load(p_k1 + 2 * H * D, mask=o_k1[:, None] < length, other=0.0)
    else:
        b_k1, b_v1 = b_k0, b_v0
    whole = length if TAIL == 0 else length // M * M
    for first in tl.range(0, whole, M):
        _resident_rows(
            p_qkv, p_out, p_lse, key, first, length, s_qkv, s_out, b_k0, b_v0, b_k1, b_v1, K0, K1, M, D, SCALE,
            FULL, TAIL > 0, LSE, DROPOUT, PRECISION,
        )  # fmt: skip
    if TAIL > 0:
        _resident_rows(
            p_qkv, p_out, p_lse, key, whole, length, s_qkv, s_out, b_k0, b_v0, b_k1, b_v1, K0, K1, TAIL, D, SCALE,
            FULL, False, LSE, DROPOUT, PRECISION,
        )  # fmt: skip


@triton.jit
def _next_keys(
    b_q, b_max, b_sum, b_out, p_keys, first, o_m, length, s_qkv, key,
    VALUES: tl.constexpr, N: tl.constexpr, FULL: tl.constexpr, SCALE: tl.constexpr, HISTORY: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Largest score, sum and weighted values of the rows after N keys more, which are all there where FULL."""
    o_n = first + tl.arange(0, N)
    p_kv = p_keys + o_n.to(tl.int64)[:, None] * s_qkv
    if FULL:
        b_k = tl.load(p_kv)  # [N, D]
        b_v = tl.load(p_kv + VALUES)
    else:
        b_k = tl.load(p_kv, mask=o_n[:, None] < length, other=0.0)
        b_v = tl.load(p_kv + VALUES, mask=o_n[:, None] < length, other=0.0)
    b_s = _scores(b_q, b_k, o_n, length, FULL or HISTORY > 0, PRECISION)  # [M, N]
    if HISTORY > 0:
        b_s = tl.where(in_band(o_m.to(tl.int32)[:, None] - o_n[None, :], HISTORY), b_s, float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * SCALE)
    b_p = tl.exp2(b_s * SCALE - b_new[:, None])
    b_shrink = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
    if DROPOUT > 0:
        o_row = o_m.to(tl.int32) * ROW + first
        b_p = drop(b_p, key, o_row[:, None], tl.arange(0, N)[None, :], 8, DROPOUT)
    b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_shrink[:, None], input_precision=PRECISION)
    return b_new, b_sum, b_out


@triton.jit(do_not_specialize=["inner", "length", "row_blocks"])
def streaming_attention_kernel(
    p_qkv,  # as above
    p_out,
    p_lse,
    p_seed,
    inner,
    length,
    row_blocks,
    s_qkv_outer,
    s_qkv_inner,
    s_qkv,
    s_out_outer,
    s_out_inner,
    s_out,
    H: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    M: tl.constexpr,
    N: tl.constexpr,
    WHOLE: tl.constexpr,  # the keys are blocks of N
    HISTORY: tl.constexpr,  # positions that a row sees, itself and those before it; 0: all
    LSE: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    key = key_of(p_seed, WEIGHTS, tl.program_id(0) // row_blocks, DROPOUT)
    i_block = tl.program_id(0) % row_blocks
    i_head = (tl.program_id(0) // row_blocks) % H
    i_sequence = tl.program_id(0) // row_blocks // H
    i_outer, i_inner = (i_sequence // inner).to(tl.int64), (i_sequence % inner).to(tl.int64)
    p_qkv += i_outer * s_qkv_outer + i_inner * s_qkv_inner + i_head * D
    p_out += i_outer * s_out_outer + i_inner * s_out_inner + i_head * D
    o_m = i_block * M + tl.arange(0, M).to(tl.int64)
    o_d = tl.arange(0, D)
    m_m = o_m[:, None] < length
    b_q = tl.load(p_qkv + o_m[:, None] * s_qkv + o_d[None, :], mask=m_m, other=0.0)  # [M, D]
    # of a history the first block of keys can lie outside of it for some rows: finite, so that their weights are 0
    b_max = tl.full([M], float("-inf") if HISTORY == 0 else -1e30, tl.float32)
    b_sum = tl.zeros([M], tl.float32)
    b_out = tl.zeros([M, D], tl.float32)
    o_kv = p_qkv + H * D + o_d[None, :]
    if HISTORY > 0:
        begin, end = keys_of_rows(i_block * M, length, M, N, HISTORY)
        for first in tl.range(begin, end, N):
            b_max, b_sum, b_out = _next_keys(
                b_q, b_max, b_sum, b_out, o_kv, first, o_m, length, s_qkv, key, H * D, N, False, SCALE, HISTORY,
                DROPOUT, PRECISION,
            )  # fmt: skip
    else:
        for first in tl.range(0, length - N + 1, N):
            b_max, b_sum, b_out = _next_keys(
                b_q, b_max, b_sum, b_out, o_kv, first, o_m, length, s_qkv, key, H * D, N, True, SCALE, HISTORY,
                DROPOUT, PRECISION,
            )  # fmt: skip
        if not WHOLE:
            b_max, b_sum, b_out = _next_keys(
                b_q, b_max, b_sum, b_out, o_kv, length // N * N, o_m, length, s_qkv, key, H * D, N, False, SCALE,
                HISTORY, DROPOUT, PRECISION,
            )  # fmt: skip
    b_out = b_out * (1.0 / b_sum)[:, None]
    tl.store(p_out + o_m[:, None] * s_out + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_m)
    if LSE:
        p_lse += (i_sequence * H + i_head).to(tl.int64) * length
        tl.store(p_lse + o_m, b_max + tl.log2(b_sum), mask=o_m < length)


def launch_axis_attention(qkv: Tensor, heads: int, axis: str, history: int) -> Tensor:
    """(B, T, F, 3C), channels contiguous -> (B, T, F, C)."""
    out = _shape(qkv, heads, axis, history)
    _launch(qkv, out, None, heads, axis, 0.0, None, history)
    return out


def launch_axis_attention_forward(
    qkv: Tensor, heads: int, axis: str, dropout: float, seed: Tensor | None, history: int
) -> tuple[Tensor, Tensor]:
    """The attention, and what its gradient needs: the logarithms to base 2 of the softmax sums, of scores times
    log2(e), (sequences * heads, length) in float32. ``seed``: of the dropout, int64, one element, on the device."""
    out, lse = _shapes(qkv, heads, axis, dropout, seed, history)
    _launch(qkv, out, lse, heads, axis, dropout, seed, history)
    return out, lse


def _launch(
    qkv: Tensor,
    out: Tensor,
    lse: Tensor | None,
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
    history: int,
) -> None:
    inner, along = dimensions(axis)
    width = out.shape[3] // heads
    common = {
        "p_qkv": qkv,
        "p_out": out,
        "p_lse": out if lse is None else lse,
        "p_seed": qkv if seed is None else seed,
        "inner": qkv.shape[inner],
        "length": qkv.shape[along],
        **strides("s_qkv", qkv, axis),
        **strides("s_out", out, axis),
        "H": heads,
        "D": width,
        "SCALE": scale(width),
        "LSE": lse is not None,
        "DROPOUT": dropout,
        "PRECISION": dot_precision(qkv),
    }
    sequences = qkv.shape[0] * qkv.shape[inner] if qkv.shape[along] else 0
    resident = None if history else _resident(qkv, width, qkv.shape[along], dropout)
    if resident:
        _launch_resident(sequences * heads, resident, qkv, out, common)
    else:
        _launch_streaming(sequences * heads, qkv, out, common, history)


def _resident(qkv: Tensor, width: int, length: int, dropout: float) -> _Resident | None:
    """How a program takes a whole sequence; None where that needs too many registers."""
    one_block = qkv.element_size() == 4 or (dropout > 0 and not warpgroups(qkv.device))  # two spill
    for longest, sizes in _RESIDENT.items():
        keys = sizes.keys0 + sizes.keys1
        if length <= longest and width * keys <= 128 * 64 and not (sizes.keys1 and one_block):
            return sizes
    return None


def _launch_resident(programs: int, sizes: _Resident, qkv: Tensor, out: Tensor, common: dict[str, Any]) -> None:
    length = common["length"]
    tail = 16 if sizes.keys1 == 16 else 0  # 65 bands: 64 rows and one more
    loops = (length // sizes.rows if tail else triton.cdiv(length, sizes.rows),)
    launch(
        resident_attention_kernel,
        programs,
        lambda: _cost(qkv, out, length, loops),
        num_warps=sizes.warps,
        **common,
        K0=sizes.keys0,
        K1=sizes.keys1,
        M=sizes.rows,
        TAIL=tail,
        FULL=length >= sizes.keys0,
    )


def _launch_streaming(programs: int, qkv: Tensor, out: Tensor, common: dict[str, Any], history: int) -> None:
    length = common["length"]
    rows, keys, warps = _STREAMING[qkv.element_size()]
    if qkv.element_size() == 4 and not warpgroups(qkv.device):
        rows = 32  # registers
    elif qkv.element_size() == 2 and warpgroups(qkv.device) and length > rows:
        rows = 64 if history else 128  # of all keys and values, each comes from the L2 half as often then
    if tensor_memory(qkv.device):
        warps = 8  # four have 28 spill instructions
    row_blocks = triton.cdiv(length, rows)
    launch(
        streaming_attention_kernel,
        programs * row_blocks,
        lambda: _streaming_cost(qkv, out, length, rows, keys, history),
        num_warps=warps,
        **common,
        row_blocks=row_blocks,
        M=rows,
        N=keys,
        WHOLE=history > 0 or length % keys == 0,
        HISTORY=history,
    )


def _streaming_cost(qkv: Tensor, out: Tensor, length: int, rows: int, keys: int, history: int) -> Cost:
    """Keys and values go through the L2 once for every block of rows that sees them."""
    row_blocks = triton.cdiv(length, rows)
    if not history:
        return _cost(qkv, out, length, (length // keys,), row_blocks)
    past = blocks_past_rows(length, rows, keys, history)
    return _cost(qkv, out, mean_history(length, history), (past,), row_blocks * past * keys / max(length, 1))


def _cost(qkv: Tensor, out: Tensor, seen: float, loops: tuple[float, ...], times: float = 1) -> Cost:
    """``seen``: keys that a row sees. Queries and results go through the L2 once, keys and values so many times."""
    l2 = size(out) + size(qkv) / 3 * (1 + 2 * times)
    return Cost(loops, flop=4 * out.numel() * seen, l2_bytes=l2, dram_bytes=size(qkv, out))


def _shape(qkv: Tensor, heads: int, axis: str, history: int) -> Tensor:
    return torch.empty(*qkv.shape[:3], qkv.shape[3] // 3, dtype=qkv.dtype, device=qkv.device)


def _shapes(
    qkv: Tensor, heads: int, axis: str, dropout: float, seed: Tensor | None, history: int
) -> tuple[Tensor, Tensor]:
    return _shape(qkv, heads, axis, history), softmax_sums(qkv, heads, axis)


axis_attention_operator = operator("axis_attention", launch_axis_attention, _shape)
axis_attention_forward = operator("axis_attention_forward", launch_axis_attention_forward, _shapes)


def axis_attention(qkv: Tensor, heads: int, axis: str, dropout: float = 0.0, history: int = 0) -> Tensor:
    """What the gradient needs is kept only where one is asked for."""
    qkv = qkv.contiguous()
    if dropout or needs_gradient(qkv):
        return axis_attention_forward(qkv, heads, axis, dropout, draw_seed(dropout, qkv.device), history)[0]
    return axis_attention_operator(qkv, heads, axis, history)
