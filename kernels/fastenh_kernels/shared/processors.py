"""What the forms for processors share: PyTorch's own functions, and oneDNN's with what follows in the same pass."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def computing_dtype(x: Tensor) -> torch.dtype:
    """That of an autocast, or of ``x``."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, activation: str = "none") -> Tensor:
    """Linear map of (B, T, F, C); plus ``residual``, or "relu" or "swish" (SiLU) behind it. Not for gradients, nor in
    an autocast.

    By oneDNN in one pass where PyTorch has that: 1.1 times as fast.
    """
    if not fuses(x.dtype):
        y = F.linear(x, weight, bias)
        return _activated(y if residual is None else y.add_(residual), activation)
    return _convolved(x, weight[:, :, None, None], bias, 0, activation, residual)


def convolve_bands(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the bands of each frame, then SiLU: (B, T, F, C), (C', C, taps), (C',) -> (B, T, F, C'). Otherwise as
    ``linear``."""
    weight, around = weight.unsqueeze(2), weight.shape[2] // 2
    if fuses(x.dtype):
        return _convolved(x, weight, bias, around, "swish")
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=(0, around))
    return F.silu(y, inplace=True).permute(0, 2, 3, 1)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor, around: int, activation: str, residual: Tensor | None = None
) -> Tensor:
    """A linear map is a convolution here, too: oneDNN keeps code for each shape it has met, and for a convolution
    that is 75 KB instead of 570."""
    given, shape = (x.permute(0, 3, 1, 2), weight, bias), ([0, around], [1, 1], [1, 1], 1)
    if residual is None:
        y = torch.ops.mkldnn._convolution_pointwise(*given, *shape, activation, [], "")
    else:
        x, *maps = given
        binary = torch.ops.mkldnn._convolution_pointwise.binary
        y = binary(x, residual.permute(0, 3, 1, 2), *maps, *shape, "add", 1.0, None, [], None)
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
            y = _convolved(x, kernel, bias, 0, "none", x)
            z = _convolved(x, kernel, bias, 0, "swish")
        return torch.equal(y, 3 * x) and torch.allclose(z, F.silu(2 * x))
    except (RuntimeError, AttributeError):
        return False
