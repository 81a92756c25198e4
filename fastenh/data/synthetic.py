"""Noise out of nothing: coloured, resonant, swelling, humming, clicking. What recordings of rain and dogs do not hold:
fans, engines, wind, traffic, keyboards."""

from __future__ import annotations

import numpy as np


def synthetic_noise(rng: np.random.Generator, length: int, sample_rate: int) -> np.ndarray:
    """float32 (length,), RMS of about 1: a random draw of the parts below."""
    noise = _coloured(rng, length, sample_rate)
    if rng.random() < 0.5:
        noise *= _swelling(rng, length, sample_rate)
    if rng.random() < 0.35:
        noise += rng.uniform(0.3, 2.0) * _humming(rng, length, sample_rate)
    if rng.random() < 0.2:
        noise = rng.uniform(0.05, 1.0) * noise + _clicking(rng, length, sample_rate)
    return (noise / max(np.sqrt(np.mean(noise**2)), 1e-6)).astype(np.float32)


def _coloured(rng: np.random.Generator, length: int, sample_rate: int) -> np.ndarray:
    """Gaussian, its power falling as f^-0 to f^-2.5, bent by a smooth random curve and up to four resonances."""
    frequencies = np.maximum(np.fft.rfftfreq(length, 1 / sample_rate), 20.0)
    octaves = np.log2(frequencies / 20.0)
    level = -10 * rng.uniform(0.0, 2.5) * np.log10(frequencies / 1000.0)
    level += np.interp(octaves, np.arange(10.0), rng.uniform(-8, 8, 10))
    for _ in range(int(rng.integers(0, 5))):
        centre, width = rng.uniform(1, 8.5), rng.uniform(0.03, 0.4)
        level += rng.uniform(3, 20) * np.exp(-(((octaves - centre) / width) ** 2))
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * 10 ** (level / 20), length)
    return noise / np.sqrt(np.mean(noise**2))


def _swelling(rng: np.random.Generator, length: int, sample_rate: int) -> np.ndarray:
    """A smooth random gain of up to +-12 dB, with 0.5 to 8 turns a second: gusts, passing cars, machines at work."""
    turns = max(2, int(rng.uniform(0.5, 8) * length / sample_rate))
    depth = rng.uniform(2, 12)
    return 10 ** (
        np.interp(np.linspace(0, turns, length), np.arange(turns + 1), rng.uniform(-depth, depth, turns + 1)) / 20
    )


def _humming(rng: np.random.Generator, length: int, sample_rate: int) -> np.ndarray:
    """Harmonics of the mains or of something that turns at 25 to 400 Hz, not quite evenly."""
    mains = rng.random() < 0.5
    pitch = rng.choice([50.0, 60.0]) if mains else rng.uniform(25, 400)
    glide = 0.0 if mains else rng.uniform(-0.1, 0.1)
    phase = 2 * np.pi * np.cumsum(pitch * (1 + glide * np.linspace(-1, 1, length))) / sample_rate
    slope = rng.uniform(0.3, 1.5)
    highest = min(20, int(0.45 * sample_rate / (pitch * 1.1)))
    hum = np.zeros(length)
    for harmonic in range(1, 1 + int(rng.integers(1, highest + 1))):
        hum += rng.uniform(0, 1) * harmonic**-slope * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    return hum / max(np.sqrt(np.mean(hum**2)), 1e-6)


def _clicking(rng: np.random.Generator, length: int, sample_rate: int) -> np.ndarray:
    """Two to twelve short bursts a second, each noise that dies away within 2 to 30 ms: keys, steps, cutlery."""
    clicks = np.zeros(length)
    size = min(length, int(0.1 * sample_rate))
    decay = np.exp(-np.arange(size) / (rng.uniform(0.002, 0.03) * sample_rate))
    for start in rng.integers(0, max(1, length - size), 1 + int(rng.uniform(2, 12) * length / sample_rate)):
        clicks[start : start + size] += rng.uniform(0.3, 3.0) * rng.standard_normal(size) * decay
    return clicks
