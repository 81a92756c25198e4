"""``norm_taps`` in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def norm_taps(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, ahead: int) -> Tensor:
    channels, taps = weight.shape
    normed = F.layer_norm(x, (channels,), norm_weight, norm_bias)
    near = F.pad(normed, (0, 0, 0, 0, taps - 1 - ahead, ahead)).permute(0, 3, 1, 2)
    return x + F.conv2d(near, weight.view(channels, 1, taps, 1), bias, groups=channels).permute(0, 2, 3, 1)
