"""What the forms for processors share: PyTorch's own functions, and oneDNN's with what follows in the same pass."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, activation: str = "none") -> Tensor:
    """Linear map of (B, T, F, C); plus ``residual``, or "relu" or "swish" (SiLU) behind it. Not for gradients, nor in
    an autocast.

    By oneDNN in one pass where PyTorch has that: 1.1 times as fast.
    """
    if not fuses(x.dtype) or not x.numel():
        y = F.linear(x, weight, bias)
        return _activated(y if residual is None else y.add_(residual), activation)
    rows = x.flatten(0, -2)[None, None]  # for all orders of frames and bands the same code
    residual = residual if residual is None else residual.flatten(0, -2)[None, None]
    kernel = weight.view(*weight.shape, 1, 1)
    return _convolved(rows, kernel, bias, activation, residual=residual).view(*x.shape[:-1], -1)


def across_bands(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix`` (F', F) times the bands of each frame: (B, T, F, C) -> (B, T, F', C)."""
    if x.dtype != torch.bfloat16 or not fuses(x.dtype) or not x.numel():
        return torch.matmul(matrix, x)
    images = x.flatten(0, 1).unsqueeze(2)  # of F channels and C pixels
    kernel = matrix.view(*matrix.shape, 1, 1)
    y = torch.ops.mkldnn._convolution_pointwise(images, kernel, None, [0, 0], [1, 1], [1, 1], 1, "none", [], "")
    return y.view(*x.shape[:2], len(matrix), x.shape[-1])


def convolve(x: Tensor, weight: Tensor, bias: Tensor, around: int, stride: int = 1) -> Tensor:
    """Convolution over frames and bands, then SiLU: (B, T, F, C), (C', C, T taps, F taps), (C',) -> (B, T', F', C').
    Bands are padded by ``around`` zeros, and ``stride`` apart. Otherwise as ``linear``."""
    if fuses(x.dtype):
        return _convolved(x, weight, bias, "swish", around, stride)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride=(1, stride), padding=(0, around))
    return F.silu(y, inplace=True).permute(0, 2, 3, 1)


def convolve_bands(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same over the bands of each frame alone, with weights (C', C, taps): (B, T, F, C) -> (B, T, F, C')."""
    return convolve(x, weight.unsqueeze(2), bias, weight.shape[2] // 2)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    around: int = 0,
    stride: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """A linear map is a convolution here, too: oneDNN keeps code for each shape it has met, and for a convolution
    that is 75 KB instead of 570."""
    shape = [0, around], [1, stride], [1, 1], 1
    image = x.permute(0, 3, 1, 2)
    if residual is None:
        y = torch.ops.mkldnn._convolution_pointwise(image, weight, bias, *shape, activation, [], "")
    else:
        binary = torch.ops.mkldnn._convolution_pointwise.binary
        y = binary(image, residual.permute(0, 3, 1, 2), weight, bias, *shape, "add", 1.0, None, [], None)
    return y.permute(0, 2, 3, 1)


def _activated(x: Tensor, activation: str) -> Tensor:
    match activation:
        case "relu":
            return x.relu_()
        case "swish":
            return F.silu(x, inplace=True)
    return x


@lru_cache
def fuses(dtype: torch.dtype) -> bool:
    """Whether the functions of torch.compile's CPU backend, no public interface, are here and take ``dtype``."""
    try:
        x = torch.ones(1, 1, 2, 1, dtype=dtype)
        kernel, bias = x.new_ones(1, 1, 1, 1), x.new_ones(1)
        with torch.inference_mode():
            y = _convolved(x, kernel, bias, "none", residual=x)
            z = _convolved(x, kernel, bias, "swish")
        return torch.equal(y, 3 * x) and torch.allclose(z, F.silu(2 * x))
    except (RuntimeError, AttributeError):
        return False
