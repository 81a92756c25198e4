"""The gradient of ``axis_attention``, scores recomputed from the queries, keys and softmax sums.

No atomics, so that two identical steps give equal bits. A first launch takes the result and its gradient to a number a
row. Up to 192 positions in 16 bit, one program then takes a whole sequence of one head: the rows stay on chip and the
keys come block by block, so that every exponential is taken once. Longer sequences (float32: all) take two launches: a
block of rows past all keys, for the queries; a block of keys past all rows, for keys and values.

Scores are computed transposed (keys x rows) wherever keys and values want them: no product has the transposed result
of another product as its first operand (on Hopper, Triton from 3.4 on has given wrong gradients for those:
flash-linear-attention issue 640). Formulas: Dao et al. 2022, "FlashAttention", appendix B.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.dropout import WEIGHTS, drop, seed_of
from fastenh_kernels.launch import Cost, capability, dot_precision, launch, size

_LOG2E = 1.4426950408889634
# longest sequence: (three blocks of rows, keys at a time, warps)
_RESIDENT = {16: (16, 0, 0, 16, 1), 32: (32, 0, 0, 32, 2), 64: (64, 0, 0, 64, 4), 80: (64, 16, 0, 16, 1),
             128: (64, 64, 0, 64, 4), 192: (64, 64, 64, 64, 4)}  # fmt: skip
# bytes of a value: {longest sequence: (rows or keys at a time, warps)}
_STREAMING = {2: {16: (16, 1), 96: (32, 1), 2**31: (64, 4)}, 4: {2**31: (16, 2)}}
_ROWS = 64  # of a program of the first launch


@triton.jit(do_not_specialize=["inner", "length", "blocks"])
def row_statistics_kernel(
    p_out,  # (outer, inner, length, H, D) by strides
    p_grad_out,  # the same
    p_lse,  # (sequences * H, length): logarithm of the softmax sums to base 2
    p_statistics,  # (sequences * H, 2, PADDED): the same, infinite behind the end; sum of out * grad_out, there 0
    inner,
    length,
    blocks,
    s_outer,
    s_inner,
    s,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    PADDED: tl.constexpr,
):
    i_sequence = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = tl.program_id(0) % blocks * M + tl.arange(0, M)
    o_c = tl.arange(0, H * D)
    o_h = tl.arange(0, H)
    o_tile = i_sequence // inner * s_outer + i_sequence % inner * s_inner
    o_tile += o_m.to(tl.int64)[:, None] * s + o_c[None, :]
    m_m = (o_m < length)[:, None]
    b_out = tl.load(p_out + o_tile, mask=m_m, other=0.0).to(tl.float32)
    b_do = tl.load(p_grad_out + o_tile, mask=m_m, other=0.0).to(tl.float32)
    b_delta = tl.sum(tl.reshape(b_out * b_do, (M, H, D)), 2)  # [M, H]
    o_row = i_sequence * H + o_h
    b_lse = tl.load(p_lse + o_row[None, :] * length + o_m[:, None], mask=m_m, other=float("inf"))
    p_s = p_statistics + o_row[None, :] * (2 * PADDED) + o_m[:, None]
    tl.store(p_s, b_lse, mask=(o_m < PADDED)[:, None])
    tl.store(p_s + PADDED, b_delta, mask=(o_m < PADDED)[:, None])


@triton.jit
def _pair(b_q, b_do, p_row, seed, o_m, o_n, length, b_k, b_v, b_dk, b_dv, b_dq, SCALE: tl.constexpr,
          PADDED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A block of rows and a block of keys: their part of dk, dv [N, D] and of dq, transposed: [D, M]."""
    b_lse = tl.load(p_row + o_m)
    b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [N, M]
    # A weight is at most 1; that of a key behind the end (zeros) must be finite, to vanish in dq.
    b_p = tl.exp2(tl.minimum(b_s * SCALE - b_lse[None, :], 0.0)).to(b_do.dtype)
    b_dropped = b_p
    if DROPOUT > 0:
        o = o_m[None, :] * length + o_n[:, None]
        b_dropped = drop(b_p, seed, o, DROPOUT).to(b_do.dtype)
    b_dv = tl.dot(b_dropped, b_do, b_dv, input_precision=PRECISION)
    b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
    if DROPOUT > 0:
        b_dp = drop(b_dp, seed, o, DROPOUT)
    b_delta = tl.load(p_row + PADDED + o_m)
    b_ds = b_p * (b_dp - b_delta[None, :]).to(b_q.dtype)
    b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    b_dq = tl.dot(tl.trans(b_k), b_ds, b_dq, input_precision=PRECISION)
    return b_dk, b_dv, b_dq


@triton.jit
def _load_rows(p_qkv, p_grad_out, o_m, length, s, s_out, D: tl.constexpr, WHOLE: tl.constexpr):
    o_d = tl.arange(0, D)[None, :]
    m_m = (o_m < length)[:, None] | WHOLE
    b_q = tl.load(p_qkv + o_m[:, None] * s + o_d, mask=m_m, other=0.0)  # [M, D]
    b_do = tl.load(p_grad_out + o_m[:, None] * s_out + o_d, mask=m_m, other=0.0)
    return b_q, b_do


@triton.jit
def _store_rows(p_grad_qkv, o_m, length, s, b_dq, D: tl.constexpr, ROOT: tl.constexpr, WHOLE: tl.constexpr):
    p = p_grad_qkv + o_m[:, None] * s + tl.arange(0, D)[None, :]
    m_m = (o_m < length)[:, None] | WHOLE
    tl.store(p, tl.trans((b_dq * ROOT).to(p_grad_qkv.dtype.element_ty)), mask=m_m)


@triton.jit(do_not_specialize=["inner", "length"])
def resident_gradient_kernel(
    p_qkv,  # (outer, inner, length, 3, H, D) by strides
    p_grad_out,  # (outer, inner, length, H, D) by strides
    p_grad_qkv,  # strides as of qkv
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
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    seed = seed_of(p_seed, WEIGHTS + tl.program_id(0), DROPOUT)
    i_head = tl.program_id(0) % H
    i_sequence = tl.program_id(0) // H
    i_outer, i_inner = (i_sequence // inner).to(tl.int64), (i_sequence % inner).to(tl.int64)
    o_qkv = i_outer * s_outer + i_inner * s_inner + i_head * D
    p_qkv += o_qkv
    p_grad_qkv += o_qkv
    p_grad_out += i_outer * s_out_outer + i_inner * s_out_inner + i_head * D
    p_row = p_statistics + tl.program_id(0).to(tl.int64) * (2 * PADDED)
    b_q0, b_do0 = _load_rows(p_qkv, p_grad_out, tl.arange(0, M0), length, s, s_out, D, M1 > 0)
    b_dq0 = tl.zeros([D, M0], tl.float32)
    b_q1, b_do1, b_dq1, b_q2, b_do2, b_dq2 = b_q0, b_do0, b_dq0, b_q0, b_do0, b_dq0
    if M1 > 0:
        b_q1, b_do1 = _load_rows(p_qkv, p_grad_out, M0 + tl.arange(0, M1), length, s, s_out, D, M2 > 0)
        b_dq1 = tl.zeros([D, M1], tl.float32)
    if M2 > 0:
        b_q2, b_do2 = _load_rows(p_qkv, p_grad_out, M0 + M1 + tl.arange(0, M2), length, s, s_out, D, False)
        b_dq2 = tl.zeros([D, M2], tl.float32)
    for first in tl.range(0, length, N):
        o_n = first + tl.arange(0, N)
        m_n = (o_n < length)[:, None]
        o_k = o_n[:, None] * s + tl.arange(0, D)[None, :] + H * D
        b_k = tl.load(p_qkv + o_k, mask=m_n, other=0.0)  # [N, D]
        b_v = tl.load(p_qkv + o_k + H * D, mask=m_n, other=0.0)
        b_dk = tl.zeros([N, D], tl.float32)
        b_dv = tl.zeros([N, D], tl.float32)
        b_dk, b_dv, b_dq0 = _pair(
            b_q0, b_do0, p_row, seed, tl.arange(0, M0), o_n, length, b_k, b_v, b_dk, b_dv, b_dq0, SCALE, PADDED,
            DROPOUT, PRECISION,
        )  # fmt: skip
        if M1 > 0:
            b_dk, b_dv, b_dq1 = _pair(
                b_q1, b_do1, p_row, seed, M0 + tl.arange(0, M1), o_n, length, b_k, b_v, b_dk, b_dv, b_dq1,
                SCALE, PADDED, DROPOUT, PRECISION,
            )  # fmt: skip
        if M2 > 0:
            b_dk, b_dv, b_dq2 = _pair(
                b_q2, b_do2, p_row, seed, M0 + M1 + tl.arange(0, M2), o_n, length, b_k, b_v, b_dk, b_dv, b_dq2,
                SCALE, PADDED, DROPOUT, PRECISION,
            )  # fmt: skip
        tl.store(p_grad_qkv + o_k, (b_dk * ROOT).to(p_grad_qkv.dtype.element_ty), mask=m_n)
        tl.store(p_grad_qkv + o_k + H * D, b_dv.to(p_grad_qkv.dtype.element_ty), mask=m_n)
    _store_rows(p_grad_qkv, tl.arange(0, M0), length, s, b_dq0, D, ROOT, M1 > 0)
    if M1 > 0:
        _store_rows(p_grad_qkv, M0 + tl.arange(0, M1), length, s, b_dq1, D, ROOT, M2 > 0)
    if M2 > 0:
        _store_rows(p_grad_qkv, M0 + M1 + tl.arange(0, M2), length, s, b_dq2, D, ROOT, False)


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
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block, i_row, o_qkv, o_out = _program(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H, D)
    seed = seed_of(p_seed, WEIGHTS + i_row, DROPOUT)
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
    for first in tl.range(0, length, M):
        o_n = first + tl.arange(0, M)
        m_n = (o_n < length)[:, None]
        p_k = p_qkv + o_qkv + o_n.to(tl.int64)[:, None] * s + o_d[None, :] + H * D
        b_k = tl.load(p_k, mask=m_n, other=0.0)  # [N, D]
        b_v = tl.load(p_k + H * D, mask=m_n, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_p = tl.exp2(tl.minimum(b_s * SCALE - b_lse[:, None], 0.0))
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
        if DROPOUT > 0:
            b_dp = drop(b_dp, seed, o_m.to(tl.int64)[:, None] * length + o_n[None, :], DROPOUT)
        b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k.dtype)
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
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block, i_row, o_qkv, o_out = _program(inner, blocks, s_outer, s_inner, s_out_outer, s_out_inner, H, D)
    seed = seed_of(p_seed, WEIGHTS + i_row, DROPOUT)
    o_n = i_block * M + tl.arange(0, M)
    o_d = tl.arange(0, D)
    m_n = (o_n < length)[:, None]
    p_k = o_qkv + o_n.to(tl.int64)[:, None] * s + o_d[None, :] + H * D
    b_k = tl.load(p_qkv + p_k, mask=m_n, other=0.0)  # [N, D]
    b_v = tl.load(p_qkv + p_k + H * D, mask=m_n, other=0.0)
    b_dk = tl.zeros([M, D], tl.float32)
    b_dv = tl.zeros([M, D], tl.float32)
    p_row = p_statistics + i_row * 2 * padded
    for first in tl.range(0, length, M):
        o_m = first + tl.arange(0, M)
        m_m = (o_m < length)[:, None]
        b_q = tl.load(p_qkv + o_qkv + o_m.to(tl.int64)[:, None] * s + o_d[None, :], mask=m_m, other=0.0)  # [M, D]
        p_do = p_grad_out + o_out + o_m.to(tl.int64)[:, None] * s_out + o_d[None, :]
        b_do = tl.load(p_do, mask=m_m, other=0.0)
        b_lse = tl.load(p_row + o_m)  # infinite behind the end: weights of 0
        b_delta = tl.load(p_row + padded + o_m)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * SCALE  # [N, M]
        b_p = tl.exp2(b_s - b_lse[None, :])
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_dropped = b_p
        if DROPOUT > 0:
            o = o_m.to(tl.int64)[None, :] * length + o_n[:, None]
            b_dp = drop(b_dp, seed, o, DROPOUT)
            b_dropped = drop(b_p, seed, o, DROPOUT)
        b_dv = tl.dot(b_dropped.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[None, :])).to(b_q.dtype)
        b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    tl.store(p_grad_qkv + p_k, (b_dk * ROOT).to(p_grad_qkv.dtype.element_ty), mask=m_n)
    tl.store(p_grad_qkv + p_k + H * D, b_dv.to(p_grad_qkv.dtype.element_ty), mask=m_n)


def axis_attention_backward(
    grad_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    axis: str,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """The gradient of the packed projections. (B, T, F, C), (B, T, F, 3C), (B, T, F, C) -> (B, T, F, 3C).

    All contiguous; ``lse``, ``dropout`` and ``seed`` as of ``axis_attention_forward``. Raises ``ValueError`` unless
    heads are 16, 32, 64 or 128 wide, and a power of two of them.
    """
    width = qkv.shape[3] // (3 * heads)
    if width not in (16, 32, 64, 128) or heads & (heads - 1):
        raise ValueError(f"{heads} heads of {width} channels: need a power of two of 16, 32, 64 or 128")
    inner, along = (1, 2) if axis == "frequency" else (2, 1)
    length, sequences = qkv.shape[along], qkv.shape[0] * qkv.shape[inner]
    grad_qkv = torch.empty_like(qkv)
    grad_out = grad_out.contiguous()
    resident = next((sizes for longest, sizes in _RESIDENT.items() if length <= longest), None)
    narrow = capability(qkv.device) < 90 or dropout > 0
    if qkv.element_size() == 4 or width > 32 or (narrow and length > 64):  # these spill
        resident = None
    block, warps = next(entry for longest, entry in _STREAMING[qkv.element_size()].items() if length <= longest)
    padded = sum(resident[:3]) if resident else triton.cdiv(length, block) * block
    strides = [tensor.stride(d) for tensor in (qkv, out) for d in (0, inner, along)]
    names = ("s_outer", "s_inner", "s", "s_out_outer", "s_out_inner", "s_out")
    statistics = _row_statistics(grad_out, out, lse, heads, padded, strides[3:], (inner, along))
    arguments: dict[str, Any] = {
        "p_qkv": qkv,
        "p_grad_out": grad_out,
        "p_grad_qkv": grad_qkv,
        "p_statistics": statistics,
        "p_seed": statistics if seed is None else seed,
        "DROPOUT": dropout,
        "inner": qkv.shape[inner],
        "length": length,
        **dict(zip(names, strides, strict=True)),
        "H": heads,
        "D": width,
        "ROOT": 1 / math.sqrt(width),
        "SCALE": _LOG2E / math.sqrt(width),
        "PRECISION": dot_precision(qkv),
    }
    programs = sequences * heads if length else 0
    if resident:
        *sizes, warps = resident
        arguments |= dict(zip(("M0", "M1", "M2", "N"), sizes, strict=True)) | {"PADDED": padded}

        def cost() -> Cost:
            moved = size(qkv, grad_qkv, grad_out, statistics)
            loops = (triton.cdiv(length, sizes[3]),)
            return Cost(loops, flop=10 * out.numel() * length, l2_bytes=moved, dram_bytes=moved)

        launch(resident_gradient_kernel, programs, arguments, cost, num_warps=warps, num_stages=1)
        return grad_qkv
    blocks = triton.cdiv(length, block)
    arguments |= {"blocks": blocks, "padded": padded, "M": block}
    for kernel, products, own in ((query_gradient_kernel, 3, 3), (key_value_gradient_kernel, 4, 4)):

        def cost(products: int = products, own: int = own) -> Cost:
            """Own rows once; two activations stream past once for each block."""
            once, streamed = own * size(out) + size(statistics), 2 * size(out)
            flop = products * 2 * out.numel() * length
            return Cost((blocks,), flop, l2_bytes=once + blocks * streamed, dram_bytes=once + streamed)

        launch(kernel, programs * blocks, arguments, cost, num_warps=warps)
    return grad_qkv


def _row_statistics(
    grad_out: Tensor, out: Tensor, lse: Tensor, heads: int, padded: int, strides: list[int], axes: tuple[int, int]
) -> Tensor:
    """(sequences * heads, 2, padded): see ``row_statistics_kernel``."""
    inner, length = (out.shape[axis] for axis in axes)
    sequences = out.shape[0] * inner
    statistics = torch.empty(sequences * heads, 2, padded, dtype=torch.float32, device=out.device)
    blocks = triton.cdiv(padded, _ROWS)
    arguments = {
        "p_out": out,
        "p_grad_out": grad_out,
        "p_lse": lse,
        "p_statistics": statistics,
        "inner": inner,
        "length": length,
        "blocks": blocks,
        **dict(zip(("s_outer", "s_inner", "s"), strides, strict=True)),
        "H": heads,
        "D": out.shape[3] // heads,
        "M": _ROWS,
        "PADDED": padded,
    }

    def cost() -> Cost:
        moved = size(out, grad_out, lse, statistics)
        return Cost((), flop=0, l2_bytes=moved, dram_bytes=moved)

    launch(row_statistics_kernel, sequences * blocks, arguments, cost, num_warps=4)
    return statistics
