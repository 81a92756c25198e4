"""The gradient of ``axis_attention`` for sequences that do not fit the chip, in two launches.

One takes a block of rows past all keys, for the gradient of the queries; the other takes a block of keys past all rows,
for those of keys and values. So every exponential is taken twice, and no sum is shared by two programs.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.band import (
    blocks_past_rows,
    in_band,
    keys_of_rows,
    mean_history,
    rows_of_keys,
)
from fastenh_kernels.shared.dropout import ROW, WEIGHTS, kept, key_of
from fastenh_kernels.shared.launch import Cost, launch, size

# bytes of a value: {longest sequence: (rows or keys at a time, warps)}
_BLOCKS = {2: {16: (16, 1), 96: (32, 1), 2**31: (64, 4)}, 4: {2**31: (16, 2)}}


@triton.jit
def _program(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H: tl.constexpr, D: tl.constexpr):
    """(block, row of the statistics, offset into qkv, offset into out) of a program."""
    i_block = tl.program_id(0) % blocks
    i_row = tl.program_id(0) // blocks
    i_head = i_row % H
    i_outer = (i_row // H // inner).to(tl.int64)
    i_inner = (i_row // H % inner).to(tl.int64)
    o_qkv = i_outer * s_outer + i_inner * s_inner + i_head * D
    o_out = i_outer * s_out_outer + i_inner * s_out_inner + i_head * D
    return i_block, i_row.to(tl.int64), o_qkv, o_out


@triton.jit(do_not_specialize=["inner", "length", "blocks", "padded"])
def query_gradient_kernel(
    p_qkv,  # (outer, inner, length, 3, H, D) by strides
    p_grad_out,  # (outer, inner, length, H, D) by strides
    p_grad_qkv,  # strides as of qkv
    p_statistics,  # (sequences * H, 2, padded)
    p_seed,  # (1,), of the dropout
    inner,
    length,
    blocks,
    padded,
    s_outer,
    s_inner,
    s,
    s_out_outer,
    s_out_inner,
    s_out,
    H: tl.constexpr,
    D: tl.constexpr,
    ROOT: tl.constexpr,
    SCALE: tl.constexpr,
    M: tl.constexpr,
    HISTORY: tl.constexpr,
    LARGER: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block, i_row, o_qkv, o_out = _program(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H, D)
    key = key_of(p_seed, WEIGHTS, i_row, DROPOUT)
    o_m = i_block * M + tl.arange(0, M)
    o_d = tl.arange(0, D)
    m_m = (o_m < length)[:, None]
    p_q = o_qkv + o_m.to(tl.int64)[:, None] * s + o_d[None, :]
    b_q = tl.load(p_qkv + p_q, mask=m_m, other=0.0)  # [M, D]
    b_do = tl.load(p_grad_out + o_out + o_m.to(tl.int64)[:, None] * s_out + o_d[None, :], mask=m_m, other=0.0)
    p_row = p_statistics + i_row * 2 * padded + o_m
    b_lse = tl.load(p_row)
    b_delta = tl.load(p_row + padded)
    b_dq = tl.zeros([M, D], tl.float32)
    begin, end = keys_of_rows(i_block * M, length, M, M, HISTORY)
    for first in tl.range(begin, end, M):
        o_n = first + tl.arange(0, M)
        m_n = (o_n < length)[:, None]
        p_k = p_qkv + o_qkv + o_n.to(tl.int64)[:, None] * s + o_d[None, :] + H * D
        b_k = tl.load(p_k, mask=m_n, other=0.0)  # [N, D]
        b_v = tl.load(p_k + H * D, mask=m_n, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_p = tl.exp2(tl.minimum(b_s * SCALE - b_lse[:, None], 0.0))
        if HISTORY > 0:
            b_p = tl.where(in_band(o_m[:, None] - o_n[None, :], HISTORY), b_p, 0.0)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        if DROPOUT > 0:
            o_row = (o_m * ROW + first)[:, None]
            b_ds = kept(b_p, key, o_row, tl.arange(0, M)[None, :], 8, DROPOUT) * b_dp - b_p * b_delta[:, None]
        else:
            b_ds = b_p * (b_dp - b_delta[:, None])
        b_ds = b_ds.to(b_k.dtype)
        b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
    tl.store(p_grad_qkv + p_q, (b_dq * ROOT).to(p_grad_qkv.dtype.element_ty), mask=m_m)


@triton.jit(do_not_specialize=["inner", "length", "blocks", "padded"])
def key_value_gradient_kernel(
    p_qkv,  # as above
    p_grad_out,
    p_grad_qkv,
    p_statistics,
    p_seed,
    inner,
    length,
    blocks,
    padded,
    s_outer,
    s_inner,
    s,
    s_out_outer,
    s_out_inner,
    s_out,
    H: tl.constexpr,
    D: tl.constexpr,
    ROOT: tl.constexpr,
    SCALE: tl.constexpr,
    M: tl.constexpr,
    HISTORY: tl.constexpr,
    LARGER: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block, i_row, o_qkv, o_out = _program(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H, D)
    key = key_of(p_seed, WEIGHTS, i_row, DROPOUT)
    o_n = i_block * M + tl.arange(0, M)
    o_d = tl.arange(0, D)
    m_n = (o_n < length)[:, None]
    p_k = o_qkv + o_n.to(tl.int64)[:, None] * s + o_d[None, :] + H * D
    b_k = tl.load(p_qkv + p_k, mask=m_n, other=0.0)  # [N, D]
    b_v = tl.load(p_qkv + p_k + H * D, mask=m_n, other=0.0)
    b_dk = tl.zeros([M, D], tl.float32)
    b_dv = tl.zeros([M, D], tl.float32)
    p_row = p_statistics + i_row * 2 * padded
    begin, end = rows_of_keys(i_block * M, length, M, HISTORY)
    for first in tl.range(begin, end, M):
        o_m = first + tl.arange(0, M)
        m_m = (o_m < length)[:, None]
        b_q = tl.load(p_qkv + o_qkv + o_m.to(tl.int64)[:, None] * s + o_d[None, :], mask=m_m, other=0.0)  # [M, D]
        p_do = p_grad_out + o_out + o_m.to(tl.int64)[:, None] * s_out + o_d[None, :]
        b_do = tl.load(p_do, mask=m_m, other=0.0)
        b_lse = tl.load(p_row + o_m)  # infinite behind the end: weights of 0
        b_delta = tl.load(p_row + padded + o_m)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * SCALE  # [N, M]
        b_p = tl.exp2(b_s - b_lse[None, :])
        if HISTORY > 0:
            b_p = tl.where(in_band(o_m[None, :] - o_n[:, None], HISTORY), b_p, 0.0)
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        if DROPOUT > 0:
            o_row = (o_m * ROW + i_block * M)[None, :]
            b_kept = kept(b_p, key, o_row, tl.arange(0, M)[:, None], 8, DROPOUT)
            b_dv = tl.dot(b_kept.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
            b_ds = b_kept * b_dp - b_p * b_delta[None, :]
        else:
            b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
            b_ds = b_p * (b_dp - b_delta[None, :])
        b_ds = b_ds.to(b_q.dtype)
        b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    tl.store(p_grad_qkv + p_k, (b_dk * ROOT).to(p_grad_qkv.dtype.element_ty), mask=m_n)
    tl.store(p_grad_qkv + p_k + H * D, (b_dv * LARGER).to(p_grad_qkv.dtype.element_ty), mask=m_n)


def padded_length(length: int, element_size: int, masked: bool) -> int:
    """In whole blocks. ``masked``: by a history or by dropout."""
    block, _ = _block_of(length, element_size, masked)
    return triton.cdiv(length, block) * block


def _block_of(length: int, element_size: int, masked: bool) -> tuple[int, int]:
    """(rows or keys at a time, warps)."""
    sizes = _BLOCKS[element_size]
    if masked and length > min(sizes):
        return sizes[max(sizes)]  # one warp with 32 has no registers for the mask
    return next(size for longest, size in sizes.items() if length <= longest)


def launch_streaming_gradient(programs: int, grad_out: Tensor, statistics: Tensor, common: dict[str, Any]) -> None:
    """``common``: what all kernels of the gradient take; ``programs``: one for every sequence of a head."""
    length, padded = common["length"], statistics.shape[2]
    history = common["HISTORY"]
    block, warps = _block_of(length, grad_out.element_size(), bool(history or common["DROPOUT"]))
    blocks = triton.cdiv(length, block)
    for kernel, products, own in ((query_gradient_kernel, 3, 3), (key_value_gradient_kernel, 4, 4)):

        def cost(products: int = products, own: int = own) -> Cost:
            """Own rows once; two activations stream past once for each block, of a history the part that it sees."""
            once, streamed = own * size(grad_out) + size(statistics), 2 * size(grad_out)
            past = blocks_past_rows(length, block, block, history) if history else blocks
            flop = products * 2 * grad_out.numel() * mean_history(length, history)
            return Cost((past,), flop, l2_bytes=once + past * streamed, dram_bytes=once + streamed)

        launch(
            kernel,
            programs * blocks,
            cost,
            num_warps=warps,
            **common,
            blocks=blocks,
            padded=padded,
            M=block,
        )
