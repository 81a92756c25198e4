"""``compressed_front`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.shared.compression import compress


def compressed_front(spectrum: Tensor, weight: Tensor, bias: Tensor, power: float, ahead: int) -> Tensor:
    compressed, magnitude = compress(spectrum[:, :-1], power)
    x = F.pad(torch.cat([compressed, magnitude.unsqueeze(-1)], -1), (0, 0, 0, 0, 2 - ahead, ahead))
    x = x.to(weight.dtype).permute(0, 3, 1, 2)
    weight = weight.transpose(2, 3)
    return F.silu(F.conv2d(x, weight, bias.to(weight.dtype), stride=(1, 4), padding=(0, 2))).permute(0, 2, 3, 1)
