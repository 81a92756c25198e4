"""Tiles of rows in and out of a program: by a copy engine of the SM (TMA), or by its threads.

The copy engine takes the addresses, the masks and half of the way through shared memory off the threads: rows behind
the last one read as zeros and are not written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastenh_kernels.shared.launch import warpgroups


def has_descriptors(x: Tensor) -> bool:
    """Whether the kernels take such rows, and the matrices beside them, by the copy engine."""
    return x.element_size() == 2 and x.numel() > 0 and warpgroups(x.device)


def described(tensor: Tensor, rows: int, columns: int, descriptors: bool) -> Tensor | TensorDescriptor:
    """(..., C), contiguous, as kernels take it: in tiles of ``rows`` by ``columns``, or as it is."""
    if not descriptors:
        return tensor
    if tensor.storage_offset() * tensor.element_size() % 16:  # the engine takes aligned rows alone
        tensor = tensor.clone()
    return TensorDescriptor.from_tensor(tensor.flatten(0, -2), [rows, columns])


@triton.jit
def load_rows(p, o_m, o_c, tile, first, rows, WIDTH: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """[M, N]: rows ``tile * M + o_m`` of (rows, WIDTH), columns ``first + o_c``."""
    M: tl.constexpr = o_m.shape[0]
    if DESCRIPTORS:
        b = p.load([tl.cast(tile * M, tl.int32), tl.cast(first, tl.int32)])
    else:
        m_m = o_m[:, None] < rows - tile * M
        b = tl.load(p + tile * (M * WIDTH) + o_m[:, None] * WIDTH + (first + o_c)[None, :], mask=m_m, other=0.0)
    return b


@triton.jit
def store_rows(p, b, o_m, o_c, tile, first, rows, WIDTH: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """The same the other way."""
    M: tl.constexpr = o_m.shape[0]
    if DESCRIPTORS:
        p.store([tl.cast(tile * M, tl.int32), tl.cast(first, tl.int32)], b)
    else:
        m_m = o_m[:, None] < rows - tile * M
        tl.store(p + tile * (M * WIDTH) + o_m[:, None] * WIDTH + (first + o_c)[None, :], b, mask=m_m)


@triton.jit
def nothing(M: tl.constexpr, C: tl.constexpr, dtype: tl.constexpr):
    """[M, 16] and [16, C], whose product is zero. The second one is computed, since of a constant each thread would
    store all that it may need, not its share."""
    b_zeros = tl.where(tl.arange(0, 16)[:, None] + tl.arange(0, C)[None, :] >= 0, 0.0, 1.0)
    return tl.full([M, 16], 1.0, dtype), b_zeros.to(dtype)


@triton.jit
def as_result(b_x, b_nothing):
    """[M, C] rows in float32, where a product leaves its results: ``nothing`` is added to them. What follows is then
    computed there alone; the compiler may compute it twice where a product and a store both want it."""
    return tl.dot(b_nothing[0], b_nothing[1], b_x.to(tl.float32))
