"""``mask_head`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.complex_mask.reference import complex_mask
from fastenh_kernels.shared.upsampled import tap_matrix, upsampled


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    scale, shift, weight, bias = (tensor.flatten().to(z.dtype) for tensor in (scale, shift, weight, bias))
    up = upsampled(z, tap_matrix(z.shape[2], spectrum.shape[1], z.dtype, z.device))
    hidden = torch.addcmul(shift, up, scale).relu()
    logits = F.linear(hidden, weight.unsqueeze(0), bias)
    return complex_mask(logits.squeeze(-1).permute(1, 0, 2).to(spectrum.real.dtype), spectrum, "sigmoid")
