"""Attention over a limited history: a position sees itself and the ``HISTORY - 1`` before it, a band of the scores.

Blocks of scores wholly outside of the band are not computed. Where HISTORY is 0 every position sees all, and nothing of
this is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def in_band(o_back, HISTORY: tl.constexpr):
    """Whether positions are seen that lie ``o_back`` before: one comparison, since what lies behind wraps around."""
    return o_back.to(tl.uint32, bitcast=True) < HISTORY


@triton.jit
def keys_of_rows(first, length, M: tl.constexpr, N: tl.constexpr, HISTORY: tl.constexpr):
    """(first, end) of the keys that M rows from ``first`` on see, from the start of a block of N."""
    begin, end = 0, length
    if HISTORY > 0:
        begin = tl.maximum(first - (HISTORY - 1), 0) // N * N
        end = tl.minimum(first + M, length)
    return begin, end


@triton.jit
def rows_of_keys(first, length, N: tl.constexpr, HISTORY: tl.constexpr):
    """(first, end) of the rows that see any of N keys from ``first`` on."""
    begin, end = 0, length
    if HISTORY > 0:
        begin = first
        end = tl.minimum(first + N + (HISTORY - 1), length)
    return begin, end


def blocks_past_rows(length: int, rows: int, keys: int, history: int) -> float:
    """Blocks of keys that a block of rows goes past, on average."""
    firsts = range(0, length, rows)
    past = (triton.cdiv(min(f + rows, length), keys) - max(f - history + 1, 0) // keys for f in firsts)
    return sum(past) / max(len(firsts), 1)


def blocks_past_keys(length: int, block: int, history: int) -> float:
    """Blocks of rows that a block of as many keys goes past, on average."""
    firsts = range(0, length, block)
    past = (triton.cdiv(min(f + block + history - 1, length) - f, block) for f in firsts)
    return sum(past) / max(len(firsts), 1)


def mean_history(length: int, history: int) -> float:
    """Positions that a position sees, on average."""
    if not history:
        return length
    shown = min(history, length)
    return shown - shown * (shown - 1) / 2 / max(length, 1)
