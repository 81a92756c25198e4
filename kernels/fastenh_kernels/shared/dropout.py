"""Dropout from a counter: whether a value is kept follows from a seed and the place of the value alone.

So the backward pass draws again what the forward pass drew, and nothing is stored. The generator is Philox (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), Triton's own. A seed is an int64 tensor of one element, so
that a captured CUDA graph can be given another one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# What is added to the seed of a layer; attention weights add the number of their sequence and head, too.
PROJECTION: tl.constexpr = tl.constexpr(0)
HIDDEN_UNITS: tl.constexpr = tl.constexpr(1)
FEED_FORWARD: tl.constexpr = tl.constexpr(2)
WEIGHTS: tl.constexpr = tl.constexpr(3)


def draw_seed(dropout: float, device: torch.device) -> Tensor | None:
    """From PyTorch's generator of the device: it follows ``torch.manual_seed``. None where nothing is dropped."""
    return torch.randint(2**62, (1,), device=device) if dropout else None


@triton.jit
def seed_of(p_seed, offset, DROPOUT: tl.constexpr):
    seed = tl.zeros([], tl.int64) + offset
    if DROPOUT > 0:
        seed += tl.load(p_seed)
    return seed


@triton.jit
def drop(b, seed, o, DROPOUT: tl.constexpr):
    """Values at the places ``o``: 0 with probability DROPOUT, else larger by 1 / (1 - DROPOUT)."""
    return tl.where(tl.rand(seed, o) >= DROPOUT, b * (1.0 / (1.0 - DROPOUT)), 0.0)
