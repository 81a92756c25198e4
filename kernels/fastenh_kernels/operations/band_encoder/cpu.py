"""``band_encoder`` on a processor, where no gradient is needed: each convolution with its SiLU in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh_kernels.operations.band_encoder import reference
from fastenh_kernels.shared.context import autocast_dtype, needs_gradient
from fastenh_kernels.shared.processors import across_bands, convolve_bands, linear


def band_encoder(x: Tensor, convolutions: tuple[Tensor, ...], bands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if needs_gradient(x, *convolutions, *bands):
        return reference.band_encoder(x, convolutions, bands)
    dtype, outs = autocast_dtype(x), []
    convolutions = tuple(tensor.to(dtype) for tensor in convolutions)
    to_bands, enter, enter_bias, positions = (tensor.to(dtype) for tensor in bands)
    with torch.autocast("cpu", enabled=False):
        x = x.to(dtype)
        for weight, bias in zip(convolutions[::2], convolutions[1::2], strict=True):
            x = convolve_bands(x, weight, bias)
            outs.append(x)
        return linear(across_bands(to_bands, x), enter, enter_bias).add_(positions), *outs
