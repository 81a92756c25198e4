"""Dropout from a counter: whether a value is kept follows from a seed and the place of the value alone.

So the backward pass draws again what the forward pass drew, and nothing is stored. A place is a site in the layer, a
group of rows, a row in it and a column. Seed, site and group go through Philox (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"; Triton's own) once a tile, which gives a key of 64 bits. Row and column, a counter of 32
bits, go through a hash with the key for every value: the first half of triple32 by Chris Wellons (2018, "Prospecting
for hash functions", public domain) and one more multiplication, whose highest bits a comparison with a threshold asks
for. Philox for every value would take over a hundred instructions instead of six. Whether the draws are independent is
a matter of tests/operations/test_dropout.py: lowbias32, a hash of two multiplications by the same author, cut short in
the same way failed there.

Two columns share a hash up to its last multiplication, and each has a multiplier of its own there. Columns eight apart
lie in one thread in the results of matrix products, transposed or not, and neighbouring columns where rows are loaded
or stored, so that the compiler computes what they share once. The pairs of words (A x, B x) modulo 2^32 for all x are a
lattice that fills the square evenly: in the spectral test (Knuth, "The art of computer programming", volume 2) its
shortest vector has 0.65 of the greatest length there can be.

A seed is an int64 tensor of one element, so that a captured CUDA graph can be given another one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# The sites of a layer where values are dropped
PROJECTION: tl.constexpr = tl.constexpr(0)
HIDDEN_UNITS: tl.constexpr = tl.constexpr(1)
FEED_FORWARD: tl.constexpr = tl.constexpr(2)
WEIGHTS: tl.constexpr = tl.constexpr(3)

GROUP: tl.constexpr = tl.constexpr(2**16)  # rows of an activation that share a key; as many columns fit the counter
# From row to row of the counters of attention weights, whose width is not known when a kernel is compiled: the golden
# ratio times 2^32 (modulo that), which spreads them evenly. Of 65,536 rows no two are within 52,000 of each other.
ROW: tl.constexpr = tl.constexpr(0x9E3779B9 - 2**32)


def draw_seed(dropout: float, device: torch.device) -> Tensor | None:
    """From PyTorch's generator of the device: it follows ``torch.manual_seed``. None where nothing is dropped."""
    return torch.randint(2**62, (1,), device=device) if dropout else None


@triton.jit
def key_of(p_seed, SITE: tl.constexpr, group, DROPOUT: tl.constexpr):
    """The key of a group of rows at a site: of 65,536 rows of an activation, or of the attention weights of a sequence
    and head."""
    if DROPOUT > 0:
        group = tl.zeros([], tl.int64) + group
        none = tl.zeros([], tl.int32)
        low, high, _, _ = tl.philox(tl.load(p_seed), group.to(tl.int32), (group >> 32).to(tl.int32), none + SITE, none)
        key = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
    else:
        key = tl.zeros([], tl.uint64)
    return key


@triton.jit
def row_draws(p_seed, SITE: tl.constexpr, first, o_m, WIDTH: tl.constexpr, DROPOUT: tl.constexpr):
    """The key and the counters of the first columns of the rows ``first + o_m`` of an activation (rows, WIDTH), all of
    which are in one group."""
    first = tl.zeros([], tl.int64) + first
    return key_of(p_seed, SITE, first // GROUP, DROPOUT), ((first % GROUP).to(tl.int32) + o_m) * WIDTH


@triton.jit
def keeps(key, o_row, o_column, APART: tl.constexpr, DROPOUT: tl.constexpr):
    """Whether values are kept: with probability 1 - DROPOUT.

    ``o_row``: counters of the first columns of their rows. ``o_column``: their columns. The two are broadcast.
    APART: 1 or 8, how far the two columns that share a hash are from each other; the same in all kernels that
    draw for a site.
    """
    second = o_column & APART
    # The compiler sees that the two of a pair are equal in this difference, but not in o_column & ~APART.
    word = (o_row + key.to(tl.uint32)) + (o_column - second).to(tl.uint32, bitcast=True)
    word ^= word >> 17
    word *= 0xED5AD4BB
    word ^= (word >> 11) ^ (key >> 32).to(tl.uint32)
    word *= tl.where(second == 0, 0xAC4C1B51, 0x31848BAB).to(tl.uint32)
    THRESHOLD: tl.constexpr = int(DROPOUT * 2.0**32)
    return word >= THRESHOLD


@triton.jit
def kept(b, key, o_row, o_column, APART: tl.constexpr, DROPOUT: tl.constexpr):
    """The values that are kept, and 0 for the others; places as for ``keeps``."""
    return tl.where(keeps(key, o_row, o_column, APART, DROPOUT), b, 0.0)


@triton.jit
def drop(b, key, o_row, o_column, APART: tl.constexpr, DROPOUT: tl.constexpr):
    """The same, larger by 1 / (1 - DROPOUT)."""
    return kept(b * (1.0 / (1.0 - DROPOUT)), key, o_row, o_column, APART, DROPOUT)
