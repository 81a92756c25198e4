"""The sequences of an activation along one axis, and how the kernels' launches describe them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG2E = 1.4426950408889634


def dimensions(axis: str) -> tuple[int, int]:
    """Those of (B, T, F, C) across which sequences lie side by side, and along which they run."""
    return (1, 2) if axis == "frequency" else (2, 1)


def strides(name: str, tensor: Tensor, axis: str) -> dict[str, int]:
    """As kernels take them: from clip to clip, from sequence to sequence, from position to position."""
    inner, along = dimensions(axis)
    return {f"{name}_outer": tensor.stride(0), f"{name}_inner": tensor.stride(inner), name: tensor.stride(along)}


def scale(width: int) -> float:
    """Of the scores of a head, times log2(e): the exponentials are powers of 2."""
    return _LOG2E / math.sqrt(width)


def softmax_sums(x: Tensor, heads: int, axis: str) -> Tensor:
    """Empty, for sequences of x (B, T, F, any): (sequences * heads, length) in float32."""
    inner, along = dimensions(axis)
    rows = x.shape[0] * x.shape[inner] * heads
    return torch.empty(rows, x.shape[along], dtype=torch.float32, device=x.device)
