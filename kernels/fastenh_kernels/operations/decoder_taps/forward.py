"""The decoder's convolution before upsampling as a walk along time (``shared/time_taps.py``), a row for each band."""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.operators import operator
from fastenh_kernels.shared.time_taps import walk


def launch_decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    """The dtype of x and skip is that of the result; the matrix is rounded to it."""
    bands, channels = x.shape[2:]
    out = _shapes(x, skip, matrix)
    walk(x.contiguous(), skip.contiguous(), matrix.to(x.dtype), None, out, bands=bands, step=channels, start=0)
    return out


def _shapes(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    batch, frames, bands, _ = x.shape
    return torch.empty(batch, frames, bands, 3, matrix.shape[2] // 3, dtype=x.dtype, device=x.device)


decoder_taps_operator = operator("decoder_taps", launch_decoder_taps, _shapes)


def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    x = x.to(autocast_dtype(x))
    return decoder_taps_operator(x, skip.to(x.dtype), matrix)
