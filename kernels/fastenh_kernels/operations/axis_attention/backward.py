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

from fastenh_kernels.operations.axis_attention.forward import axis_attention_forward
from fastenh_kernels.operations.axis_attention.resident_gradient import launch_resident_gradient, resident_blocks
from fastenh_kernels.operations.axis_attention.sequences import dimensions, scale, strides
from fastenh_kernels.operations.axis_attention.streaming_gradient import launch_streaming_gradient, padded_length
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, size
from fastenh_kernels.shared.operators import operator

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
    LARGER: tl.constexpr,
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
    tl.store(p_s + PADDED, b_delta / LARGER, mask=(o_m < PADDED)[:, None])


def launch_axis_attention_backward(
    grad_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
    history: int,
) -> Tensor:
    """The gradient of the packed projections. (B, T, F, C), (B, T, F, 3C), (B, T, F, C) -> (B, T, F, 3C).

    qkv and out are contiguous; ``out`` and all that follows as of ``axis_attention_forward``.
    """
    inner, along = dimensions(axis)
    length, width = qkv.shape[along], out.shape[3] // heads
    grad_out, grad_qkv = grad_out.contiguous(), torch.empty_like(qkv)
    resident = None if history else resident_blocks(qkv, width, length, dropout)
    padded = resident.rows if resident else padded_length(length, qkv.element_size(), bool(history or dropout))
    larger = 1 / (1 - dropout)
    statistics = _row_statistics(grad_out, out, lse, heads, axis, padded, larger)
    common = {
        "p_qkv": qkv,
        "p_grad_out": grad_out,
        "p_grad_qkv": grad_qkv,
        "p_statistics": statistics,
        "p_seed": statistics if seed is None else seed,
        "inner": qkv.shape[inner],
        "length": length,
        **strides("s", qkv, axis),
        **strides("s_out", out, axis),
        "H": heads,
        "D": width,
        "ROOT": larger / math.sqrt(width),
        "LARGER": larger,
        "SCALE": scale(width),
        "DROPOUT": dropout,
        "PRECISION": dot_precision(qkv),
    }
    programs = qkv.shape[0] * qkv.shape[inner] * heads if length else 0
    if resident:
        launch_resident_gradient(programs, resident, grad_out, statistics, common)
    else:
        launch_streaming_gradient(programs, grad_out, statistics, common | {"HISTORY": history})
    return grad_qkv


def _row_statistics(
    grad_out: Tensor, out: Tensor, lse: Tensor, heads: int, axis: str, padded: int, larger: float
) -> Tensor:
    """(sequences * heads, 2, padded): see ``row_statistics_kernel``."""
    inner, along = dimensions(axis)
    sequences = out.shape[0] * out.shape[inner]
    statistics = torch.empty(sequences * heads, 2, padded, dtype=torch.float32, device=out.device)
    blocks = triton.cdiv(padded, _ROWS)

    def cost() -> Cost:
        moved = size(out, grad_out, lse, statistics)
        return Cost((), flop=0, l2_bytes=moved, dram_bytes=moved)

    launch(
        row_statistics_kernel,
        sequences * blocks,
        cost,
        num_warps=4,
        p_out=out,
        p_grad_out=grad_out,
        p_lse=lse,
        p_statistics=statistics,
        inner=out.shape[inner],
        length=out.shape[along],
        blocks=blocks,
        **strides("s", out, axis),
        H=heads,
        D=out.shape[3] // heads,
        M=_ROWS,
        PADDED=padded,
        LARGER=larger,
    )
    return statistics


def _shape(grad_out: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv)


axis_attention_backward = operator("axis_attention_backward", launch_axis_attention_backward, _shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.heads, ctx.axis, ctx.dropout, seed, ctx.history = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the softmax sums
    ctx.save_for_backward(qkv, *output, seed)


def _gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *kept, seed = ctx.saved_tensors
    grad_qkv = axis_attention_backward(grad, *kept, ctx.heads, ctx.axis, ctx.dropout, seed, ctx.history)
    return grad_qkv, None, None, None, None, None


axis_attention_forward.register_autograd(_gradient, setup_context=_keep)
