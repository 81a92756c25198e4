"""``complex_mask`` in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def complex_mask(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    if activation == "sigmoid":
        mask = torch.sigmoid(mask)
    elif activation == "tanh":
        magnitude = mask.abs()
        mask = mask * (torch.tanh(magnitude) / magnitude.clamp_min(torch.finfo(magnitude.dtype).tiny))
    if mask.is_complex():
        return mask.to(spectrum.dtype) * spectrum
    return torch.view_as_complex(torch.view_as_real(spectrum) * mask.to(spectrum.real.dtype).unsqueeze(-1))
