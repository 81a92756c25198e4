"""Self-attention along one axis of packed projections (B, T, F, 3C), read by strides: nothing is moved or copied.

Two kernels: ``resident`` takes whole sequences as long as the registers allow it, and ``streaming`` all others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh_kernels.operations.axis_attention.resident import launch_resident, resident_sizes
from fastenh_kernels.operations.axis_attention.sequences import dimensions, scale, softmax_sums, strides
from fastenh_kernels.operations.axis_attention.streaming import launch_streaming
from fastenh_kernels.shared.context import needs_gradient
from fastenh_kernels.shared.dropout import draw_seed
from fastenh_kernels.shared.launch import dot_precision
from fastenh_kernels.shared.operators import operator


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
    resident = None if history else resident_sizes(qkv, width, qkv.shape[along], dropout)
    if resident:
        launch_resident(sequences * heads, resident, qkv, out, axis, common)
    else:
        launch_streaming(sequences * heads, qkv, out, common, history)


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
