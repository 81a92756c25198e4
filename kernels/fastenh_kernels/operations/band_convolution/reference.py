"""``band_convolution`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def band_convolution(
    x: Tensor,
    affine: Tensor | None,
    weight: Tensor,
    skip: Tensor | None = None,
    skip_affine: Tensor | None = None,
    forked: bool = False,
) -> tuple[Tensor, ...]:
    rows = _activated(x, affine)
    if skip is not None:
        rows = torch.cat([rows, _activated(skip, skip_affine)], -1)
    weight = weight.to(rows.dtype)
    y = F.conv2d(rows.permute(0, 3, 1, 2), weight.unsqueeze(2), padding=(0, weight.shape[2] // 2)).permute(0, 2, 3, 1)
    var, mean = torch.var_mean(y.to(torch.promote_types(y.dtype, torch.float32)), (0, 1, 2), correction=0)
    return (y, mean, var, x) if forked else (y, mean, var)


def _activated(x: Tensor, affine: Tensor | None) -> Tensor:
    if affine is None:
        return x
    scale, shift = affine.to(x.dtype)
    return F.silu(torch.addcmul(shift, x, scale))
