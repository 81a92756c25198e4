"""``band_encoder`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_bands(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the bands of each frame, then SiLU: (B, T, F, C), (C', C, taps), (C',) -> (B, T, F, C')."""
    taps = weight.shape[2]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.unsqueeze(2), bias.to(weight.dtype), padding=(0, taps // 2))
    return F.silu(y).permute(0, 2, 3, 1)


def band_encoder(x: Tensor, convolutions: tuple[Tensor, ...], bands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    outs = []
    for weight, bias in zip(convolutions[::2], convolutions[1::2], strict=True):
        x = convolve_bands(x, weight, bias)
        outs.append(x)
    to_bands, enter, enter_bias, positions = bands
    y = F.linear(torch.matmul(to_bands, x), enter, enter_bias.to(enter.dtype)) + positions.to(enter.dtype)
    return y, *outs
