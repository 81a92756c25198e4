"""``axis_attention`` in PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def axis_attention(qkv: Tensor, heads: int, axis: str, dropout: float = 0.0, history: int = 0) -> Tensor:
    """``history``: positions that attention sees, the present one and those before it; 0 for all."""
    q, k, v = sequences_of(qkv, heads, axis)
    seen = recent(q.shape[2], history, q.device) if history else None
    return laid_out(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout), qkv, axis)


def attention_weights(qkv: Tensor, heads: int, axis: str, history: int = 0) -> Tensor:
    """(B, T, F, 3C) -> (sequences, heads, length, length): the share that each position (row) takes of each other one.

    ``axis_attention`` never holds them; this is to look at.
    """
    q, k, _ = sequences_of(qkv, heads, axis)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if history:
        scores = scores.masked_fill(~recent(q.shape[2], history, q.device), -math.inf)
    return scores.softmax(-1)


def sequences_of(qkv: Tensor, heads: int, axis: str) -> Tensor:
    """(B, T, F, 3C) -> (3, sequences, heads, length, width)."""
    split = qkv.unflatten(3, (3, heads, -1))
    return split.permute((3, 0, 1, 4, 2, 5) if axis == "frequency" else (3, 0, 2, 4, 1, 5)).flatten(1, 2)


def laid_out(attended: Tensor, qkv: Tensor, axis: str) -> Tensor:
    """(sequences, heads, length, width) -> (B, T, F, C)."""
    b, t, f, packed = qkv.shape
    split = attended.unflatten(0, (b, t if axis == "frequency" else f))
    return split.permute((0, 1, 3, 2, 4) if axis == "frequency" else (0, 3, 1, 2, 4)).reshape(b, t, f, packed // 3)


def recent(length: int, history: int, device: torch.device) -> Tensor:
    """(length, length), true where a position (row) sees another: itself and the ``history - 1`` before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - history)
