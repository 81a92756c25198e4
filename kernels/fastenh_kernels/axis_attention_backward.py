"""The gradient of ``axis_attention``, scores recomputed: nothing but the queries, keys, values and result is kept.

Two launches, no atomics, so that two identical steps give equal bits. The first takes a block of rows past all keys,
twice: for the softmax statistics, then for the gradient of the queries; it leaves the statistics for the second. That
takes a block of keys past all rows. Its scores are computed transposed, so that no product has a transposed result of
another product as its operand (on Hopper, Triton from 3.4 on has given wrong gradients for those:
flash-linear-attention issue 640). Formulas: Dao et al. 2022, "FlashAttention", appendix B.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.launch import Cost, dot_precision, launch, size

_LOG2E = 1.4426950408889634
# bytes of a value: {longest sequence: (rows or keys at a time, warps)}
_BLOCKS = {2: {16: (16, 1), 96: (32, 1), 2**31: (64, 4)}, 4: {2**31: (16, 2)}}


@triton.jit
def _offsets(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H: tl.constexpr, D: tl.constexpr):
    """(block, row of the statistics, offset into qkv, offset into out) of a program."""
    i_block = tl.program_id(0) % blocks
    i_row = tl.program_id(0) // blocks
    i_head = i_row % H
    i_outer = (i_row // H // inner).to(tl.int64)
    i_inner = (i_row // H % inner).to(tl.int64)
    o_qkv = i_outer * s_outer + i_inner * s_inner + i_head * D
    o_out = i_outer * s_out_outer + i_inner * s_out_inner + i_head * D
    return i_block, i_row.to(tl.int64), o_qkv, o_out


@triton.jit(do_not_specialize=["inner", "length", "blocks"])
def query_gradient_kernel(
    p_qkv,  # (outer, inner, length, 3, H, D) by strides
    p_out,  # (outer, inner, length, H, D) by strides
    p_grad_out,  # strides as of out
    p_grad_qkv,  # strides as of qkv
    p_statistics,  # (sequences * H, 2, length): logarithm of the softmax sums to base 2, sum of out * grad_out
    inner,
    length,
    blocks,
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
    M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block, i_row, o_qkv, o_out = _offsets(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H, D)
    o_m = i_block * M + tl.arange(0, M)
    o_d = tl.arange(0, D)
    m_m = (o_m < length)[:, None]
    o_rows = o_out + o_m.to(tl.int64)[:, None] * s_out + o_d[None, :]
    p_q = o_qkv + o_m.to(tl.int64)[:, None] * s + o_d[None, :]
    b_q = tl.load(p_qkv + p_q, mask=m_m, other=0.0)  # [M, D]
    b_do = tl.load(p_grad_out + o_rows, mask=m_m, other=0.0)
    b_out = tl.load(p_out + o_rows, mask=m_m, other=0.0)
    b_delta = tl.sum(b_out.to(tl.float32) * b_do.to(tl.float32), 1)
    b_max = tl.full([M], float("-inf"), tl.float32)
    b_sum = tl.zeros([M], tl.float32)
    for first in tl.range(0, length, M):
        o_n = first + tl.arange(0, M)
        p_k = p_qkv + o_qkv + o_n.to(tl.int64)[:, None] * s + o_d[None, :] + H * D
        b_k = tl.load(p_k, mask=(o_n < length)[:, None], other=0.0)  # [N, D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * SCALE
        b_s = tl.where((o_n < length)[None, :], b_s, float("-inf"))  # [M, N]
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_s - b_new[:, None]), 1)
        b_max = b_new
    b_lse = b_max + tl.log2(b_sum)
    p_row = p_statistics + i_row * 2 * length + o_m
    tl.store(p_row, b_lse, mask=o_m < length)
    tl.store(p_row + length, b_delta, mask=o_m < length)
    b_dq = tl.zeros([M, D], tl.float32)
    for first in tl.range(0, length, M):
        o_n = first + tl.arange(0, M)
        m_n = (o_n < length)[:, None]
        p_k = p_qkv + o_qkv + o_n.to(tl.int64)[:, None] * s + o_d[None, :] + H * D
        b_k = tl.load(p_k, mask=m_n, other=0.0)  # [N, D]
        b_v = tl.load(p_k + H * D, mask=m_n, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * SCALE
        b_s = tl.where((o_n < length)[None, :], b_s, float("-inf"))
        b_p = tl.exp2(b_s - b_lse[:, None])
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k.dtype)
        b_dq = tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)
    tl.store(p_grad_qkv + p_q, (b_dq * ROOT).to(p_grad_qkv.dtype.element_ty), mask=m_m)


@triton.jit(do_not_specialize=["inner", "length", "blocks"])
def key_value_gradient_kernel(
    p_qkv,  # as above
    p_grad_out,
    p_grad_qkv,
    p_statistics,
    inner,
    length,
    blocks,
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
    PRECISION: tl.constexpr,
):
    i_block, i_row, o_qkv, o_out = _offsets(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H, D)
    o_n = i_block * M + tl.arange(0, M)
    o_d = tl.arange(0, D)
    m_n = (o_n < length)[:, None]
    p_k = o_qkv + o_n.to(tl.int64)[:, None] * s + o_d[None, :] + H * D
    b_k = tl.load(p_qkv + p_k, mask=m_n, other=0.0)  # [N, D]
    b_v = tl.load(p_qkv + p_k + H * D, mask=m_n, other=0.0)
    b_dk = tl.zeros([M, D], tl.float32)
    b_dv = tl.zeros([M, D], tl.float32)
    p_row = p_statistics + i_row * 2 * length
    for first in tl.range(0, length, M):
        o_m = first + tl.arange(0, M)
        m_m = (o_m < length)[:, None]
        b_q = tl.load(p_qkv + o_qkv + o_m.to(tl.int64)[:, None] * s + o_d[None, :], mask=m_m, other=0.0)  # [M, D]
        p_do = p_grad_out + o_out + o_m.to(tl.int64)[:, None] * s_out + o_d[None, :]
        b_do = tl.load(p_do, mask=m_m, other=0.0)
        # rows behind the end: their weights become 0
        b_lse = tl.load(p_row + o_m, mask=o_m < length, other=float("inf"))
        b_delta = tl.load(p_row + length + o_m, mask=o_m < length, other=0.0)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * SCALE  # [N, M]
        b_p = tl.exp2(b_s - b_lse[None, :])
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[None, :])).to(b_q.dtype)
        b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    tl.store(p_grad_qkv + p_k, (b_dk * ROOT).to(p_grad_qkv.dtype.element_ty), mask=m_n)
    tl.store(p_grad_qkv + p_k + H * D, b_dv.to(p_grad_qkv.dtype.element_ty), mask=m_n)


def axis_attention_backward(grad_out: Tensor, qkv: Tensor, out: Tensor, heads: int, axis: str) -> Tensor:
    """The gradient of the packed projections. (B, T, F, C), (B, T, F, 3C), (B, T, F, C) -> (B, T, F, 3C).

    All contiguous. Raises ``ValueError`` unless heads are 16, 32, 64 or 128 wide.
    """
    batch, _, _, packed = qkv.shape
    width = packed // (3 * heads)
    if width not in (16, 32, 64, 128):
        raise ValueError(f"heads of {width} channels: need 16, 32, 64 or 128")
    inner, along = (1, 2) if axis == "frequency" else (2, 1)
    length, sequences = qkv.shape[along], batch * qkv.shape[inner] * heads
    grad_qkv = torch.empty_like(qkv)
    statistics = torch.empty(sequences, 2, length, dtype=torch.float32, device=qkv.device)
    table = _BLOCKS[qkv.element_size()]
    block, warps = next(entry for longest, entry in table.items() if length <= longest)
    blocks = triton.cdiv(length, block)
    strides = [tensor.stride(d) for tensor in (qkv, out) for d in (0, inner, along)]
    names = ("s_outer", "s_inner", "s", "s_out_outer", "s_out_inner", "s_out")
    arguments = {
        "p_qkv": qkv,
        "p_grad_out": grad_out.contiguous(),
        "p_grad_qkv": grad_qkv,
        "p_statistics": statistics,
        "inner": qkv.shape[inner],
        "length": length,
        "blocks": blocks,
        **dict(zip(names, strides, strict=True)),
        "H": heads,
        "D": width,
        "ROOT": 1 / math.sqrt(width),
        "SCALE": _LOG2E / math.sqrt(width),
        "M": block,
        "PRECISION": dot_precision(qkv),
    }
    programs = sequences * blocks if length else 0
    first = functools.partial(_cost, qkv, length, blocks, 2, 4, 3 * size(out) + size(statistics))
    launch(query_gradient_kernel, programs, {**arguments, "p_out": out}, first, num_warps=warps)
    second = functools.partial(_cost, qkv, length, blocks, 1, 4, 4 * size(out) + size(statistics))
    launch(key_value_gradient_kernel, programs, arguments, second, num_warps=warps)
    return grad_qkv


def _cost(qkv: Tensor, length: int, blocks: int, loops: int, products: int, own: int) -> Cost:
    """``own`` bytes once, and what streams past (two thirds of qkv) once for each block."""
    flop = products * 2 * qkv.numel() / 3 * length
    streamed = size(qkv) / 3 * (3 if loops == 2 else 2)  # keys twice and values; queries and the result's gradient
    return Cost((blocks,) * loops, flop, l2_bytes=own + blocks * streamed, dram_bytes=own + streamed)
