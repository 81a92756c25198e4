"""Tiles of the sequences along one axis: by a copy engine of the SM (TMA), or by its threads.

For the copy engine a tensor (B, T, F, channels) has three dimensions: what lies outside of a sequence, its positions,
and the channels of all sequences beside each other. Positions behind the end read as zeros and are not written.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def start(i_outer, i_inner, i_head, s_outer, s_inner, WIDTH: tl.constexpr, D: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Where a head of a sequence begins, of WIDTH channels a position: ``place`` and ``column`` for ``load_positions``
    and ``store_positions``."""
    if DESCRIPTORS:
        place, column = tl.cast(i_outer, tl.int32), tl.cast(i_inner, tl.int32) * WIDTH + i_head * D
    else:
        place, column = i_outer * s_outer + i_inner * s_inner, i_head * D
    return place, column


@triton.jit
def load_positions(p, place, first, column, length, s, N: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr,
                   DESCRIPTORS: tl.constexpr):  # fmt: skip
    """[N, D]: positions from ``first`` on, zeros behind the end, of the sequence at ``place``: an offset, or the first
    index of the descriptor. ``column``: the first channel, counted from there or from the descriptor's."""
    if DESCRIPTORS:
        b = tl.reshape(p.load([place, first, column]), (N, D))
    else:
        o_n = first + tl.arange(0, N)
        m_n = (o_n < length)[:, None] | WHOLE
        b = tl.load(p + place + column + o_n[:, None] * s + tl.arange(0, D)[None, :], mask=m_n, other=0.0)
    return b


@triton.jit
def store_positions(p, b, place, first, column, length, s, WHOLE: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """The same the other way."""
    N: tl.constexpr = b.shape[0]
    D: tl.constexpr = b.shape[1]
    if DESCRIPTORS:
        p.store([place, first, column], tl.reshape(b.to(p.dtype), (1, N, D)))
    else:
        o_n = first + tl.arange(0, N)
        m_n = (o_n < length)[:, None] | WHOLE
        p_b = p + place + column + o_n[:, None] * s + tl.arange(0, D)[None, :]
        tl.store(p_b, b.to(p.dtype.element_ty), mask=m_n)


def tiles_of(tensor: Tensor, axis: str, positions: int, width: int) -> TensorDescriptor:
    """Of a contiguous tensor, in tiles of ``positions`` by ``width``."""
    if tensor.storage_offset() * tensor.element_size() % 16:  # the engine takes aligned rows alone
        tensor = tensor.clone()
    rows = tensor.flatten(0, 1) if axis == "frequency" else tensor.flatten(2)
    return TensorDescriptor.from_tensor(rows, [1, positions, width])


def in_tiles(common: dict[str, Any], axis: str, positions: int) -> dict[str, Any]:
    """The activations among the arguments of a launch, so described, and what changes with them."""
    names = {"p_qkv", "p_out", "p_grad_out", "p_grad_qkv"} & common.keys()
    found = {name: tiles_of(common[name], axis, positions, common["D"]) for name in names}
    return found | ({"inner": 1} if axis == "frequency" else {})
