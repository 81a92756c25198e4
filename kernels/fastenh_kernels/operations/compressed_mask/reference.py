"""``compressed_mask`` in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.shared.compression import compress, expand, multiply


def compressed_mask(x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int) -> Tensor:
    # two frames more than there are come out, on the side of the past first
    mask = F.conv_transpose2d(
        x.permute(0, 3, 1, 2), weight.to(x.dtype).transpose(2, 3), bias.to(x.dtype), (1, 4), (0, 2)
    )
    mask = mask[:, :, ahead : ahead + x.shape[1]].permute(0, 2, 3, 1)
    compressed, _ = compress(spectrum[:, :-1], power)
    return expand(F.pad(multiply(mask, compressed), (0, 0, 0, 1)), power)  # pairs, since ONNX pads no complex numbers
