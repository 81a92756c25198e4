"""``compressed_front`` on a processor, where no gradient is needed: features written where the convolution reads."""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh_kernels.operations.compressed_front import reference
from fastenh_kernels.shared.compression import EPS, raised, squares
from fastenh_kernels.shared.context import autocast_dtype, needs_gradient
from fastenh_kernels.shared.processors import convolve


def compressed_front(spectrum: Tensor, weight: Tensor, bias: Tensor, power: float, ahead: int) -> Tensor:
    if needs_gradient(spectrum, weight, bias):
        return reference.compressed_front(spectrum, weight, bias, power, ahead)
    frames = spectrum[:, :-1].transpose(1, 2)
    squared = squares(frames).add_(EPS)
    magnitude = raised(squared.clone(), power / 2)
    compressed = torch.view_as_real(frames * squared.rsqrt_().mul_(magnitude))
    b, t, f = frames.shape
    x = torch.zeros(b, t + 2, f, 3, dtype=weight.dtype)
    inside = x[:, 2 - ahead : 2 - ahead + t]
    for channel, values in enumerate((compressed[..., 0], compressed[..., 1], magnitude)):  # both at once take longer
        inside[..., channel] = values
    dtype = autocast_dtype(x)
    with torch.autocast("cpu", enabled=False):
        return convolve(x.to(dtype), weight.transpose(2, 3).to(dtype), bias.to(dtype), around=2, stride=4)
