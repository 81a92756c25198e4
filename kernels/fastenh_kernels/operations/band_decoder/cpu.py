"""``band_decoder`` on a processor, where no gradient is needed: each map with its SiLU in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh_kernels.operations.band_decoder import reference
from fastenh_kernels.shared.context import autocast_dtype, needs_gradient
from fastenh_kernels.shared.processors import across_bands, convolve_bands, linear


def band_decoder(
    y: Tensor,
    skips: tuple[Tensor, ...],
    bands: tuple[Tensor, ...],
    mixes: tuple[Tensor, ...],
    convolutions: tuple[Tensor, ...],
) -> Tensor:
    if needs_gradient(y, *skips, *bands, *mixes, *convolutions):
        return reference.band_decoder(y, skips, bands, mixes, convolutions)
    dtype = autocast_dtype(y)
    leave, leave_bias, from_bands = (tensor.to(dtype) for tensor in bands)
    mixes, convolutions = (tuple(tensor.to(dtype) for tensor in maps) for maps in (mixes, convolutions))
    with torch.autocast("cpu", enabled=False):
        x = across_bands(from_bands, linear(y.to(dtype), leave, leave_bias))
        for number, skip in enumerate(skips):
            weight, bias = mixes[2 * number : 2 * number + 2]
            x = linear(torch.cat([x, skip.to(dtype)], -1), weight, bias, activation="swish")
            if number < len(skips) - 1:
                x = convolve_bands(x, *convolutions[2 * number : 2 * number + 2])
    return x
