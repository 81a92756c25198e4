"""The gradient of ``axis_attention``, scores recomputed from the queries, keys and softmax sums.

No atomics, so that two identical steps give equal bits. A first launch takes the result and its gradient to a number a
row; in a layer the kernel that makes the gradient does. Up to 192 positions in 16 bit, one program then takes a whole
sequence of one head: the rows stay on chip and the keys come block by block, so that every exponential is taken once.
Longer sequences (float32: all) take two launches: a block of rows past all keys, for the queries; a block of keys past
all rows, for keys and values.

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
from fastenh_kernels.operations.axis_attention.resident_gradient import (
    Blocks,
    launch_resident_gradient,
    resident_blocks,
)
from fastenh_kernels.operations.axis_attention.sequences import dimensions, scale, strides
from fastenh_kernels.operations.axis_attention.streaming_gradient import launch_streaming_gradient, padded_length
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, size
from fastenh_kernels.shared.operators import operator

_ROWS = 64  # of a program of the first launch
# Statistics of rows behind the end, whose scores are 0: their weights vanish, and what those are multiplied with is a
# number even in float16.
BEHIND = 3e4


@triton.jit(do_not_specialize=["inner", "length", "blocks"])
def row_statistics_kernel(
    p_out,  # (outer, inner, length, H, D) by strides
    p_grad_out,  # the same
    p_lse,  # (sequences * H, length): logarithm of the softmax sums to base 2
    p_statistics,  # (sequences * H, 2, PADDED), written: the same; sums of out * grad_out
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
    b_lse = tl.load(p_lse + o_row[None, :] * length + o_m[:, None], mask=m_m)
    p_s = p_statistics + o_row[None, :] * (2 * PADDED) + o_m[:, None]
    tl.store(p_s, b_lse, mask=m_m)
    tl.store(p_s + PADDED, b_delta / LARGER, mask=m_m)


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
    grad_out = grad_out.contiguous()
    statistics = empty_statistics(qkv, heads, axis, dropout, history)
    _launch_row_statistics(grad_out, out, lse, heads, axis, statistics, 1 / (1 - dropout))
    return launch_attention_gradient(grad_out, qkv, statistics, heads, axis, dropout, seed, history)


def empty_statistics(qkv: Tensor, heads: int, axis: str, dropout: float, history: int) -> Tensor:
    """(sequences * heads, 2, padded length): see ``row_statistics_kernel``; rows behind the end are there already."""
    inner, along = dimensions(axis)
    length, width = qkv.shape[along], qkv.shape[3] // 3 // heads
    resident = _resident(qkv, width, length, dropout, history)
    padded = resident.rows if resident else padded_length(length, qkv.element_size(), bool(history or dropout))
    shape = qkv.shape[0] * qkv.shape[inner] * heads, 2, padded
    return torch.full(shape, BEHIND, dtype=torch.float32, device=qkv.device)


def _resident(qkv: Tensor, width: int, length: int, dropout: float, history: int) -> Blocks | None:
    return None if history else resident_blocks(qkv, width, length, dropout)


def launch_attention_gradient(
    grad_out: Tensor,
    qkv: Tensor,
    statistics: Tensor,
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
    history: int,
) -> Tensor:
    """The same, from contiguous ``grad_out`` and the statistics of its rows."""
    inner, along = dimensions(axis)
    length, width = qkv.shape[along], qkv.shape[3] // 3 // heads
    larger, grad_qkv = 1 / (1 - dropout), torch.empty_like(qkv)
    common = {
        "p_qkv": qkv,
        "p_grad_out": grad_out,
        "p_grad_qkv": grad_qkv,
        "p_statistics": statistics,
        "p_seed": statistics if seed is None else seed,
        "inner": qkv.shape[inner],
        "length": length,
        **strides("s", qkv, axis),
        **strides("s_out", grad_out, axis),
        "H": heads,
        "D": width,
        "ROOT": larger / math.sqrt(width),
        "LARGER": larger,
        "SCALE": scale(width),
        "DROPOUT": dropout,
        "PRECISION": dot_precision(qkv),
    }
    programs = qkv.shape[0] * qkv.shape[inner] * heads if length else 0
    if resident := _resident(qkv, width, length, dropout, history):
        launch_resident_gradient(programs, resident, grad_out, statistics, axis, common)
    else:
        launch_streaming_gradient(programs, grad_out, statistics, common | {"HISTORY": history})
    return grad_qkv


def _launch_row_statistics(
    grad_out: Tensor, out: Tensor, lse: Tensor, heads: int, axis: str, statistics: Tensor, larger: float
) -> None:
    inner, along = dimensions(axis)
    blocks = triton.cdiv(out.shape[along], _ROWS)

    def cost() -> Cost:
        moved = size(out, grad_out, lse, statistics)
        return Cost((), flop=0, l2_bytes=moved, dram_bytes=moved)

    launch(
        row_statistics_kernel,
        out.shape[0] * out.shape[inner] * blocks,
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
        PADDED=statistics.shape[2],
        LARGER=larger,
    )


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
