"""Filters and levels of batches of waveforms, (B, L)."""

from __future__ import annotations

import torch
from torch import Tensor

_FRAME = 320  # 20 ms at 16 kHz


def active_rms(x: Tensor) -> Tensor:
    """(B, 1): RMS over the 20 ms frames within 30 dB of the loudest: the level of the speech, pauses left out."""
    power = frame_power(x)
    active = power >= 1e-3 * power.amax(-1, keepdim=True)
    return ((power * active).sum(-1, keepdim=True) / active.sum(-1, keepdim=True)).sqrt()


def frame_power(x: Tensor, stride: int = 1) -> Tensor:
    """(..., L) -> (..., frames of 20 ms) of every ``stride``-th sample; what is shorter than a frame is one."""
    size = min(_FRAME // stride, x.shape[-1])
    return x.unfold(-1, size, size).square().mean(-1)


def rms(x: Tensor) -> Tensor:
    """Root mean square, (..., L) -> (..., 1)."""
    return x.square().mean(-1, keepdim=True).sqrt()


def from_db(db: Tensor) -> Tensor:
    return torch.pow(10.0, db / 20.0)


def apply_gains(x: Tensor, gains: Tensor) -> Tensor:
    """Zero-phase filter by ``gains`` (B or nothing, L // 2 + 1): speech and target stay aligned."""
    return torch.fft.irfft(torch.fft.rfft(x) * gains, x.shape[-1])


def convolve(x: Tensor, response: Tensor) -> Tensor:
    """Convolve (B, L) with (B, R); the first L samples."""
    size = fast_length(x.shape[-1] + response.shape[-1] - 1)
    return torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(response, size), size)[..., : x.shape[-1]]


def fast_length(size: int) -> int:
    """The next length without a prime factor above 7."""
    while 210**32 % size:
        size += 1
    return size


def hat_functions(x: Tensor, knots: Tensor) -> Tensor:
    """(knots, points): ``values @ hat_functions`` interpolates linearly between evenly spaced knots, flat outside."""
    spacing = knots[1] - knots[0]
    clamped = x.clamp(knots[0], knots[-1])
    return (1 - (clamped - knots[:, None]).abs() / spacing).clamp_min(0.0)
