"""``front_convolution`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.shared.compression import compress


def front_convolution(spectrum: Tensor, weight: Tensor, power: float, ahead: int) -> tuple[Tensor, Tensor, Tensor]:
    compressed, magnitude = compress(spectrum[:, :-1], power)
    x = F.pad(torch.cat([compressed, magnitude.unsqueeze(-1)], -1), (0, 0, 0, 0, 2 - ahead, ahead))
    x = x.to(weight.dtype).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight.transpose(2, 3), stride=(1, 4), padding=(0, 2)).permute(0, 2, 3, 1)
    var, mean = torch.var_mean(y.to(torch.promote_types(y.dtype, torch.float32)), (0, 1, 2), correction=0)
    return y, mean, var
