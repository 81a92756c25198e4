"""``band_map`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.affine_silu.reference import affine_silu


def band_map(
    x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor, forked: bool = False
) -> Tensor | tuple[Tensor, ...]:
    rows = x if affine is None else affine_silu(x, affine)
    y = F.linear(torch.matmul(bands, rows), weight) + added.to(x.dtype)
    return (y, x) if forked else y
