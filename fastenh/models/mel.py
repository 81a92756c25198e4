"""The mel scale: the filter bank, and two ways back from it to STFT bins.

torchaudio has all of this; it cannot be imported beside a CPU build of torch, so it is compared with where it can.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastenh.models.frontend import BINS, SAMPLE_RATE, Frontend


def mel_filter_bank(bands: int) -> Tensor:
    """(257, bands): triangular filters on the HTK scale, 0 to 8,000 Hz, peak 1 (O'Shaughnessy 1987; no norm)."""

    def to_mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    mels = torch.linspace(to_mel(0.0), to_mel(SAMPLE_RATE / 2), bands + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    distance = edges.unsqueeze(0) - torch.linspace(0, SAMPLE_RATE / 2, BINS, dtype=torch.float64).unsqueeze(1)
    width = edges.diff()
    rising, falling = -distance[:, :-2] / width[:-1], distance[:, 2:] / width[1:]
    return torch.minimum(rising, falling).clamp_min(0.0).float()


def normalised_transpose(bank: Tensor) -> Tensor:
    """(bands, 257): spreads a gain per band over the bins, as the mean weighted by the filters that reach the bin.

    Bins that no filter reaches (0 Hz, and low bins between narrow filters) take the nearest bin that one does.
    """
    total = bank.sum(1)
    reached = torch.nonzero(total > 0).squeeze(1)
    nearest = reached[(torch.arange(bank.shape[0]).unsqueeze(1) - reached).abs().argmin(1)]
    return (bank[nearest] / total[nearest].unsqueeze(1)).T.contiguous()


def invert_mel(mel: Tensor, bank: Tensor) -> Tensor:
    """(B, bands, T) mel powers -> (B, 257, T): the least-squares bin powers, negative ones set to 0."""
    return (torch.linalg.pinv(bank.T.double()).to(mel.dtype) @ mel).clamp_min(0.0)


def griffin_lim(magnitude: Tensor, frontend: Frontend, iterations: int = 32, momentum: float = 0.99) -> Tensor:
    """(B, 257, T) magnitudes -> complex spectrum with a phase that an STFT could have.

    Perraudin et al. 2013, "A fast Griffin-Lim algorithm". The start is random, from a generator of its own.
    """
    generator = torch.Generator(magnitude.device).manual_seed(0)
    phase = 2 * math.pi * torch.rand(magnitude.shape, generator=generator, device=magnitude.device)
    angles = torch.polar(torch.ones_like(magnitude), phase.to(magnitude.dtype))
    length = (magnitude.shape[-1] - 1) * frontend.hop
    previous = torch.zeros_like(angles)
    for _ in range(iterations):
        rebuilt = frontend.stft(frontend.istft(magnitude * angles, length))
        angles = rebuilt - previous * (momentum / (1 + momentum))
        angles = angles / angles.abs().clamp_min(1e-16)
        previous = rebuilt
    return magnitude * angles
