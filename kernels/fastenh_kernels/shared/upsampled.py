"""The decoder's upsampled convolution from its commuted form, in PyTorch, for ``mask_head`` and ``upsampled_moments``.

Needs no Triton; ``upsampling.py`` has the same linear map in the blocks that the kernels take.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def tap_matrix(bands: int, bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(bins, 3 * bands): what each (band, frequency tap) adds to each bin of the upsampled convolution.

    Upsampling is linear, align_corners=False; rows outside are zero. It is made in float64 and rounded once.
    """
    eye = torch.eye(bands, dtype=torch.float64, device=device).unsqueeze(0)
    rows = F.interpolate(eye, size=bins, mode="linear", align_corners=False)[0].T  # (bins, bands)
    padded = F.pad(rows, (0, 0, 1, 1))
    taps = torch.stack([padded[k : k + bins] for k in range(3)], dim=-1)
    return taps.reshape(bins, 3 * bands).to(dtype)


def upsampled(z: Tensor, taps: Tensor) -> Tensor:
    """(bins, B, T, C): the 3x3 convolution of the upsampled features.

    z: (B, T, F, 3, C), from ``decoder_taps``; taps: the ``tap_matrix`` of its bands and the bins.
    """
    b, t, _, _, channels = z.shape
    return torch.mm(taps, as_rows(z)).view(-1, b, t, channels)


def as_rows(z: Tensor) -> Tensor:
    """(B, T, F, 3, C) -> (3 F, B T C)."""
    return z.permute(2, 3, 0, 1, 4).flatten(0, 1).flatten(1)


def unserved_channels(z: Tensor) -> str:
    """Why the kernels do not take z, in words; nothing where they do: a program multiplies blocks of all channels."""
    channels = z.shape[-1]
    if channels & (channels - 1) or channels < 16:
        return f"the kernel takes a power of two of channels from 16 on, not {channels}"
    return ""
