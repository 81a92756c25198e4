"""``encoder_conv`` in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    # (time taps, frequency taps x C, C') -> (C', C, time taps, frequency taps)
    weight = matrix.to(x.dtype).unflatten(1, (3, x.shape[-1])).permute(3, 2, 0, 1)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias.to(x.dtype), stride=(1, 2), padding=1)
    return (x.relu_() if relu else x).permute(0, 2, 3, 1)
