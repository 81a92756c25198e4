"""Which of many values are open, a bit each: in an order in which a thread has all bits of a byte.

In the result of a matrix product a thread of a group of four holds two neighbouring columns of every eight. So byte k
of the four of 32 columns has columns 2 k and 2 k + 1 of each eight, and no bit leaves its thread.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _places():
    """[1, 1, 4, 1, 2]: the bit of a column, by the eight it is in and whether it is the second of two."""
    o_eight = tl.arange(0, 4)[None, None, :, None, None]
    return 2 * o_eight + tl.arange(0, 2)[None, None, None, None, :]


@triton.jit
def packed(m):
    """[M, N] booleans -> [M, N // 8] bytes. N a multiple of 32."""
    b = tl.where(tl.reshape(m, [m.shape[0], m.shape[1] // 32, 4, 4, 2]), 1 << _places(), 0)
    return tl.reshape(tl.sum(tl.sum(b, 4), 2), [m.shape[0], m.shape[1] // 8]).to(tl.uint8)


@triton.jit
def where_open(b, b_open):
    """[M, N] where the bits of [M, N // 8] bytes are 1, else 0."""
    b_open = tl.reshape(b_open.to(tl.int32), [b.shape[0], b.shape[1] // 32, 1, 4, 1])
    b_all = tl.reshape(b, [b.shape[0], b.shape[1] // 32, 4, 4, 2])
    return tl.reshape(tl.where((b_open & (1 << _places())) != 0, b_all, 0.0), b.shape)
