"""Noise out of nothing: coloured, resonant, swelling, humming, clicking. What recordings of rain and dogs do not hold:
fans, engines, wind, traffic, keyboards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastenh.data.draws import Draws
from fastenh.data.filters import apply_gains, convolve, from_db, hat_functions, rms

_HARMONICS = 20
_CLICKS = 12  # a second, at most


def synthetic_noise(draws: Draws, length: int, sample_rate: int) -> Tensor:
    """float32 (B, length), RMS of 1: a random draw of the parts below for each row."""
    noise = _coloured(draws, length, sample_rate)
    swells, hums, clicks = draws.chance(0.5), draws.chance(0.35), draws.chance(0.2)
    noise = torch.where(swells[:, None], noise * _swelling(draws, length, sample_rate), noise)
    hum_level = draws.uniform(0.3, 2.0).float() * hums
    noise = noise + hum_level[:, None] * _humming(draws, length, sample_rate)
    background = torch.where(clicks, draws.uniform(0.05, 1.0).float(), 1.0)
    noise = background[:, None] * noise + clicks[:, None] * _clicking(draws, length, sample_rate)
    return noise / rms(noise).clamp_min(1e-6)


def _coloured(draws: Draws, length: int, sample_rate: int) -> Tensor:
    """Gaussian, its power falling as f^-0 to f^-2.5, bent by a smooth random curve and up to four resonances."""
    device = draws.device
    frequency = torch.fft.rfftfreq(length, 1 / sample_rate, device=device).clamp_min(20.0)
    octaves = torch.log2(frequency / 20.0)
    level = -10 * draws.uniform(0.0, 2.5, 1).float() * torch.log10(frequency / 1000.0)
    level = level + draws.uniform(-8, 8, 10).float() @ hat_functions(octaves, torch.arange(10.0, device=device))
    count = draws.integers(0, 5)
    centre, width = draws.uniform(1, 8.5, 4, 1).float(), draws.uniform(0.03, 0.4, 4, 1).float()
    height = draws.uniform(3, 20, 4, 1).float() * (torch.arange(4, device=device) < count[:, None])[..., None]
    level = level + (height * torch.exp(-(((octaves - centre) / width) ** 2))).sum(1)
    noise = apply_gains(draws.normal(length), from_db(level))
    return noise / rms(noise).clamp_min(1e-9)


def _swelling(draws: Draws, length: int, sample_rate: int) -> Tensor:
    """A smooth random gain of up to +-12 dB, with 0.5 to 8 turns a second: gusts, passing cars, machines at work."""
    seconds = length / sample_rate
    turns = (draws.uniform(0.5, 8) * seconds).long().clamp_min(2)
    knots = draws.uniform(-1, 1, max(2, int(8 * seconds)) + 1).float() * draws.uniform(2, 12, 1).float()
    position = turns[:, None] * torch.linspace(0, 1, length, device=draws.device)
    before = position.long().clamp_max(knots.shape[1] - 2)
    share = position - before
    return from_db(knots.gather(1, before) * (1 - share) + knots.gather(1, before + 1) * share)


def _humming(draws: Draws, length: int, sample_rate: int) -> Tensor:
    """Harmonics of the mains or of something that turns at 25 to 400 Hz, not quite evenly."""
    mains = draws.chance(0.5)
    turning = draws.uniform(25, 400)
    pitch = torch.where(mains, torch.where(draws.chance(0.5), 50.0, 60.0), turning)
    glide = torch.where(mains, 0.0, draws.uniform(-0.1, 0.1))
    ramp = torch.linspace(-1, 1, length, device=draws.device, dtype=torch.float64)
    cycles = torch.cumsum(pitch[:, None] * (1 + glide[:, None] * ramp), 1) / sample_rate
    slope = draws.uniform(0.3, 1.5)
    highest = (0.45 * sample_rate / (pitch * 1.1)).long().clamp(1, _HARMONICS)
    count = draws.integers(1, highest + 1)
    strength, phase = draws.uniform(0, 1, _HARMONICS), draws.uniform(0, 1, _HARMONICS)
    hum = torch.zeros(len(pitch), length, device=draws.device)
    for harmonic in range(1, _HARMONICS + 1):
        gain = strength[:, harmonic - 1] * harmonic**-slope * (harmonic <= count)
        angle = (harmonic * cycles + phase[:, harmonic - 1, None]) % 1.0
        hum += gain.float()[:, None] * torch.sin(2 * math.pi * angle.float())
    return hum / rms(hum).clamp_min(1e-6)


def _clicking(draws: Draws, length: int, sample_rate: int) -> Tensor:
    """Two to twelve short bursts a second, each noise that dies away within 2 to 30 ms: keys, steps, cutlery."""
    seconds = length / sample_rate
    most = 1 + int(_CLICKS * seconds)
    count = 1 + (draws.uniform(2, _CLICKS) * seconds).long()
    starts = draws.integers(0, length, most)
    heights = draws.uniform(0.3, 3.0, most).float() * (torch.arange(most, device=draws.device) < count[:, None])
    impulses = torch.zeros(len(count), length, device=draws.device).scatter_add_(1, starts, heights)
    time = torch.arange(min(length, int(0.1 * sample_rate)), device=draws.device) / sample_rate
    decay = torch.exp(-time / draws.uniform(0.002, 0.03, 1).float())
    return convolve(impulses, decay) * draws.normal(length)
