"""``upsampled_moments`` in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh_kernels.shared.upsampled import tap_matrix, upsampled


def upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    up = upsampled(z, tap_matrix(z.shape[2], bins, z.dtype, z.device))
    wide = up.to(torch.promote_types(up.dtype, torch.float32))
    var, mean = torch.var_mean(wide, (0, 1, 2), correction=0)
    return mean, var
