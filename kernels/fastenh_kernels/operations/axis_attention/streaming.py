"""Attention forward where keys and values stream past a block of rows (Dao et al. 2022, "FlashAttention")."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.band import blocks_past_rows, in_band, keys_of_rows, mean_history
from fastenh_kernels.operations.axis_attention.scores import attention_cost, scores
from fastenh_kernels.shared.dropout import ROW, WEIGHTS, drop, key_of
from fastenh_kernels.shared.launch import Cost, launch, tensor_memory, warpgroups

_STREAMING = {2: (64, 64, 4), 4: (64, 32, 4)}  # bytes of a value: (rows, keys, warps)


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
    b_s = scores(b_q, b_k, o_n, length, FULL or HISTORY > 0, PRECISION)  # [M, N]
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


def launch_streaming(programs: int, qkv: Tensor, out: Tensor, common: dict[str, Any], history: int) -> None:
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
        return attention_cost(qkv, out, length, (length // keys,), row_blocks)
    past = blocks_past_rows(length, rows, keys, history)
    return attention_cost(qkv, out, mean_history(length, history), (past,), row_blocks * past * keys / max(length, 1))
