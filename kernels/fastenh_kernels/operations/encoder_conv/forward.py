"""The encoder's second convolution as a walk along time (``shared/time_taps.py``).

The three frequency taps of a band lie side by side in a frame: its row of 3 x 32 values begins a band before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.operators import operator
from fastenh_kernels.shared.time_taps import walk


def launch_encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """The dtype of x is that of the result; the matrix is rounded to it."""
    channels = x.shape[3]
    out = _shapes(x, matrix, bias, relu)
    matrix = matrix.to(x.dtype)
    walk(x.contiguous(), None, matrix, bias, out, bands=out.shape[2], step=2 * channels, start=-channels, relu=relu)
    return out


def _shapes(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    batch, frames, bands, _ = x.shape
    return torch.empty(batch, frames, (bands + 1) // 2, matrix.shape[2], dtype=x.dtype, device=x.device)


encoder_conv_operator = operator("encoder_conv", launch_encoder_conv, _shapes)


def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return encoder_conv_operator(x.to(autocast_dtype(x)), matrix, bias, relu)
