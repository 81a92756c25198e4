"""Dropout from a counter: whether a value is kept follows from a seed and the place of the value alone.

So the backward pass draws again what the forward pass drew, and nothing is stored. A place is a site in the layer, a
group of rows, a row in it and a column. Seed, site and group go through Philox (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"; Triton's own) once a tile, which gives a key of 64 bits. Row and column, a counter of 32
bits, go through a hash of two multiplications with the key for every value: lowbias32 by Chris Wellons (2018,
"Prospecting for hash functions", public domain), whose last shift a comparison with a threshold does not need. Philox
for every value would take over a hundred instructions instead of six.

Two columns eight apart share a hash up to its last multiplication, and each has a multiplier of its own. Such columns
lie in one thread in the results of matrix products, transposed or not, so that the compiler computes what they share
once. Their pairs of words are the points of a lattice, (A x, B x) modulo 2^32 for every x, which fills the square evenly:
that is the spectral test (Knuth, "The art of computer programming", volume 2), 0.84 of the best there can be.

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

# Rows of a group, and columns: a row and a column fill the counter. Attention weights, whose rows have no width that is
# known when a kernel is compiled, are counted as if they had this one.
LONGEST: tl.constexpr = tl.constexpr(2**16)


def draw_seed(dropout: float, device: torch.device) -> Tensor | None:
    """From PyTorch's generator of the device: it follows ``torch.manual_seed``. None where nothing is dropped."""
    return torch.randint(2**62, (1,), device=device) if dropout else None


@triton.jit
def key_of(p_seed, SITE: tl.constexpr, group, DROPOUT: tl.constexpr):
    """Of a group of rows at a site: of 65,536 rows of an activation, or of the attention weights of a sequence and
    head."""
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
    """(key, counters where the rows begin) of the rows ``first + o_m`` of an activation (rows, WIDTH); no group of
    rows begins within them."""
    return key_of(p_seed, SITE, first // LONGEST, DROPOUT), ((first % LONGEST).to(tl.int32) + o_m) * WIDTH


@triton.jit
def keeps(key, o_row, o_column, APART: tl.constexpr, DROPOUT: tl.constexpr):
    """Values, 0 with probability DROPOUT, in the columns ``o_column`` of rows that begin at the counters ``o_row``,
    multiples of 16. The two are broadcast."""
    odd = o_column & APART
    # a difference, not "& ~APART": so the compiler sees that the two of a pair are equal
    word = (o_row.to(tl.uint32, bitcast=True) + key.to(tl.uint32)) + (o_column - odd).to(tl.uint32, bitcast=True)
    word ^= word >> 16
    word *= 0x7FEB352D
    word ^= (word >> 15) ^ (key >> 32).to(tl.uint32)
    word *= tl.where(odd == 0, 0x846CA68B, 0x7FEB352D).to(tl.uint32)
    THRESHOLD: tl.constexpr = int(DROPOUT * 2.0**32)
    return word >= THRESHOLD


@triton.jit
def kept(key, o_row, o_column, APART: tl.constexpr, b, DROPOUT: tl.constexpr):
    return tl.where(keeps(key, o_row, o_column, APART, DROPOUT), b, 0.0)


@triton.jit
def drop(b, key, o_row, o_column, APART: tl.constexpr, DROPOUT: tl.constexpr):
    """The same, and what is kept larger by 1 / (1 - DROPOUT)."""
    return kept(key, o_row, o_column, APART, b * (1.0 / (1.0 - DROPOUT)), DROPOUT)
