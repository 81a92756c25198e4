"""``band_map`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.affine_silu.reference import affine_silu


def band_map(x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor) -> Tensor:
    if affine is not None:
        x = affine_silu(x, affine)
    return F.linear(torch.matmul(bands, x), weight) + added.to(x.dtype)
