"""Multi-head self-attention along one axis of a dual path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from fastenh_kernels.examples import DPT, DPT_COMPLEX, HISTORY, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.axis_attention import cpu, reference

Axis = Literal["frequency", "time"]
_WIDTHS = (16, 32, 64, 128)  # of a head, in the kernels


def axis_attention(qkv: Tensor, heads: int, axis: Axis, dropout: float = 0.0, history: int = 0) -> Tensor:
    """Multi-head self-attention along one axis, straight from the packed projections.

    qkv: (B, T, F, 3C), query, key and value in turn, each of ``heads`` heads of C / heads channels. The softmax runs
    over F for "frequency" and over T for "time", scores scaled by the root of the head's width (Vaswani et al. 2017,
    "Attention is all you need"). dropout: probability, on the attention weights. history: positions that attention
    sees, the present one and those before it; 0 for all, before and after. Returns (B, T, F, C).
    """
    return OPERATION(qkv, heads, axis, dropout, history)


def _serves(qkv: Tensor, heads: int, axis: Axis, dropout: float = 0.0, history: int = 0) -> str:
    return serves_heads(heads, qkv.shape[3] // 3)


def serves_heads(heads: int, channels: int) -> str:
    """Why the kernels do not take these heads, in words; nothing where they do."""
    if heads & (heads - 1) or channels not in [heads * width for width in _WIDTHS]:
        return f"{channels} channels in {heads} heads: the kernel takes a power of two of heads, 16, 32, 64 or 128 wide"
    return ""


def _examples(inputs: Inputs) -> Iterator[Example]:
    qkv = inputs.activation(DPT.bands, 3 * DPT.channels)
    for axis in ("frequency", "time"):
        yield Example(axis, (qkv, DPT.heads, axis))
    qkv = inputs.activation(DPT_COMPLEX.bands, 3 * DPT_COMPLEX.channels)
    yield Example(f"time, history {HISTORY}", (qkv, DPT_COMPLEX.heads, "time", 0.0, HISTORY))


OPERATION = Operation(
    "axis_attention", reference.axis_attention, cpu=cpu.axis_attention, serves=_serves, examples=_examples
)
