"""``band_decoder`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.band_encoder.reference import convolve_bands


def band_decoder(
    y: Tensor,
    skips: tuple[Tensor, ...],
    bands: tuple[Tensor, ...],
    mixes: tuple[Tensor, ...],
    convolutions: tuple[Tensor, ...],
) -> Tensor:
    leave, leave_bias, from_bands = bands
    x = torch.matmul(from_bands, F.linear(y, leave, leave_bias.to(leave.dtype)))
    for number, skip in enumerate(skips):
        weight, bias = mixes[2 * number : 2 * number + 2]
        x = F.silu(F.linear(torch.cat([x, skip], -1), weight, bias.to(weight.dtype)))
        if number < len(skips) - 1:
            x = convolve_bands(x, *convolutions[2 * number : 2 * number + 2])
    return x
