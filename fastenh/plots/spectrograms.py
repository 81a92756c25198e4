"""Spectrograms of recordings, one below the other, and small ones of recordings of any length."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fastenh.audio.files import read_mono, reading
from fastenh.models.frontend import N_FFT, SAMPLE_RATE
from fastenh.plots.figures import SEQUENTIAL, PlotError, figure

RANGE = 80.0  # dB below the loudest point of all panels: what lies lower is as dark
_HOP = 128
_COLUMNS = 400  # of a small picture


def draw(recordings: Sequence[Path], titles: Sequence[str], picture: Path) -> None:
    """Draw spectrograms at 16 kHz, of the channels' mean, on one scale. Raises ``PlotError`` and ``AudioError``."""
    levels = [decibels(powers(read_mono(path, SAMPLE_RATE))) for path in recordings]
    for path, level in zip(recordings, levels, strict=True):
        if not level.size:
            raise PlotError(f"{path}: holds no samples, there is nothing to draw")
    top = max(level.max() for level in levels)
    with figure(picture, 9, 0.6 + 2.1 * len(levels)) as drawn:
        axes = drawn.subplots(len(levels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, level, title in zip(axes, levels, titles, strict=True):
            seconds = level.shape[1] * _HOP / SAMPLE_RATE
            image = axis.imshow(
                level, origin="lower", aspect="auto", extent=(0, seconds, 0, SAMPLE_RATE / 2000), cmap=SEQUENTIAL,
                vmin=top - RANGE, vmax=top,
            )  # fmt: skip
            axis.set(title=title, ylabel="frequency (kHz)")
        axes[-1].set_xlabel("time (s)")
        drawn.colorbar(image, ax=list(axes), label="level (dB re full scale)", pad=0.01)


def powers(samples: np.ndarray, hop: int = _HOP) -> np.ndarray:
    """(L,) -> (257, frames): of a full-scale sine, 1. Shorter recordings than a frame are filled up with silence."""
    if not samples.size:
        return np.zeros((N_FFT // 2 + 1, 0))
    padded = np.pad(samples, (0, max(N_FFT - samples.size, 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::hop]
    window = np.hanning(N_FFT + 1)[:-1]
    return np.square(np.abs(np.fft.rfft(frames * window))).T * (2 / window.sum()) ** 2


def decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 1e-15))


def thumbnail(recording: Path, top: float | None = None) -> tuple[bytes, float]:
    """A small PNG of a recording of any length, read block by block, and its loudest level in dB.

    ``top``: the level at the light end of the scale, for a picture beside another one.
    """
    with reading(recording) as reader:
        rate = reader.encoding.sample_rate
        level = decibels(_columns((block.mean(axis=0) for block in reader.blocks()), reader.frames))
    if not level.size:
        raise PlotError(f"{recording}: holds no samples, there is nothing to draw")
    loudest = float(level.max())
    light = loudest if top is None else top
    file = io.BytesIO()
    with figure(file, 3.6, 1.3, "png") as drawn:
        axis = drawn.subplots()
        extent = (0, max(reader.frames, 1) / rate, 0, rate / 2000)
        axis.imshow(
            level, origin="lower", aspect="auto", extent=extent, cmap=SEQUENTIAL, vmin=light - RANGE, vmax=light
        )
        axis.set(xlabel="s", ylabel="kHz", ylim=(0, rate / 2000))
    return file.getvalue(), loudest


def _columns(blocks: Iterable[np.ndarray], frames: int) -> np.ndarray:
    """Mean powers (257, up to about 400) of a recording of about ``frames`` samples."""
    width = max(1, -(-frames // (_COLUMNS * N_FFT)))  # pieces of 512 samples in a column
    held, columns = np.zeros(0, np.float32), list[np.ndarray]()
    for block in blocks:
        held = np.concatenate([held, block])
        whole = held.size // (width * N_FFT) * width * N_FFT
        columns += _means(held[:whole], width)
        held = held[whole:]
    if held.size:
        columns += _means(np.pad(held, (0, -held.size % N_FFT)), -(-held.size // N_FFT))
    return np.stack(columns, axis=1) if columns else np.zeros((N_FFT // 2 + 1, 0))


def _means(samples: np.ndarray, width: int) -> list[np.ndarray]:
    if not samples.size:
        return []
    power = powers(samples, N_FFT)
    return [part.mean(axis=1) for part in np.split(power, power.shape[1] // width, axis=1)]
