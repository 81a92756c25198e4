"""``affine_silu`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_silu(x: Tensor, affine: Tensor) -> Tensor:
    scale, shift = affine.to(x.dtype)
    return F.silu(torch.addcmul(shift, x, scale))
