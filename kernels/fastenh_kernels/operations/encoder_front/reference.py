"""``encoder_front`` in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    features = (
        torch.log1p(torch.linalg.vector_norm(torch.view_as_real(spectrum), dim=-1))
        .to(weight.dtype)
        .transpose(1, 2)
        .unsqueeze(1)
    )
    weight = weight.transpose(2, 3).contiguous(memory_format=torch.channels_last)  # and so will be the result
    x = F.conv2d(features, weight, bias.to(weight.dtype), stride=(1, 2), padding=1)
    return (x.relu_() if relu else x).permute(0, 2, 3, 1)
