"""The short-time Fourier transform and its overlap-add, with gradients by each other.

The adjoint of framing, windowing and transforming is to transform back, window and add up, and the other way round.
PyTorch finds longer ways: it pads one-sided spectra with zeros for a complex transform, and adds up frames by index.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def analyse(waveform: Tensor, window: Tensor, hop: int) -> Tensor:
    """(B, L), window (N,) or (B, 1, N) of an even number of hops -> complex (B, T, N / 2 + 1), T = ceil(L / hop) + 1
    frames. The window is a constant.

    The first frame is centred on the first sample, the last one on or behind the last sample; zeros are around them.
    """
    return _Analysis.apply(waveform, window, hop)


def synthesise(spectrum: Tensor, window: Tensor, hop: int, length: int) -> Tensor:
    """Complex (B, T, N / 2 + 1), window (N,) or (B, 1, N) -> (B, length): frames times the window, which is a constant,
    added up where ``analyse`` took them."""
    return _Synthesis.apply(spectrum, window, hop, length)


def overlap_add(frames: Tensor, window: Tensor, hop: int, length: int) -> Tensor:
    """(B, T, N), window (N,) or (B, 1, N) -> (B, length): frames times the window, added up, from the centre of the
    first frame on and up to that of the last at most."""
    parts = frames.shape[2] // hop
    hops, weights, half = frames.unflatten(2, (parts, hop)), window.unflatten(-1, (parts, hop)), parts // 2

    def part(number: int) -> tuple[Tensor, Tensor]:
        return hops[:, :, number], weights[..., number, :]

    (first, first_weights), (second, second_weights) = part(half - 1), part(half)
    total = first[:, 1:] * first_weights  # (B, T - 1, hop): every hop has these two
    total.addcmul_(second[:, :-1], second_weights)
    for away in range(1, half):  # those at the edges lack some of the others
        (before, before_weights), (behind, behind_weights) = part(half - 1 - away), part(half + away)
        total[:, :-away].addcmul_(before[:, 1 + away :], before_weights)
        total[:, away:].addcmul_(behind[:, : -1 - away], behind_weights)
    return total.flatten(1)[:, :length]


def _transformed(waveform: Tensor, window: Tensor, hop: int) -> Tensor:
    half = window.shape[-1] // 2
    padded = F.pad(waveform, (half, half + -waveform.shape[1] % hop))
    return torch.fft.rfft(padded.unfold(1, window.shape[-1], hop) * window)


class _Analysis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, waveform: Tensor, window: Tensor, hop: int) -> Tensor:
        ctx.save_for_backward(window)
        ctx.hop, ctx.length = hop, waveform.shape[1]
        return _transformed(waveform, window, hop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (window,) = ctx.saved_tensors
        grad = 0.5 * grad  # all bins but the first and the last stand for two when they are transformed back
        grad[..., :: window.shape[-1] // 2] *= 2
        frames = torch.fft.irfft(grad, window.shape[-1], norm="forward")
        return overlap_add(frames, window, ctx.hop, ctx.length), None, None


class _Synthesis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, window: Tensor, hop: int, length: int) -> Tensor:
        ctx.save_for_backward(window)
        ctx.hop = hop
        return overlap_add(torch.fft.irfft(spectrum, window.shape[-1]), window, hop, length)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (window,) = ctx.saved_tensors
        spectrum = _transformed(grad, window * (2 / window.shape[-1]), ctx.hop)
        spectrum[..., :: window.shape[-1] // 2] *= 0.5
        return spectrum, None, None, None
