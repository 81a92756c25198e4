"""``decoder_taps`` in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    summed = (x + skip).to(x.dtype).permute(0, 3, 1, 2)
    kernel = matrix.to(x.dtype).permute(2, 1, 0).unsqueeze(-1)  # (frequency taps x C', C, time taps, 1)
    z = F.conv2d(summed, kernel, padding=(1, 0))
    return z.permute(0, 2, 3, 1).unflatten(-1, (3, -1))
