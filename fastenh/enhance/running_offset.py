"""A DC offset, taken out of sound that is still being made."""

from __future__ import annotations

import math

import numpy as np

_BLOCK = 0.01  # seconds from mean to mean
_CONSTANT = 2.0  # seconds: time constant of the means
_FIRST = 1.0  # seconds of sound before an offset is believed
_FOUND = 0.05  # of the RMS, as in ``Offset``
_SMALLEST = 1e-4
_SILENCE = 1e-5


class RunningOffset:
    """``Offset`` without a look ahead: takes blocks (C, n) and gives each back at once.

    What is subtracted is the mean of the sound so far, forgotten with a time constant of 2 s. From a channel's first
    second on, and only once that mean is 5 % of the RMS or more: sound without an offset comes back as it is. It
    moves in a line from mean to mean, every 10 ms. Digital silence stays silence, after 10 ms of it.
    """

    def __init__(self, channels: int, sample_rate: float) -> None:
        self.largest = 0.0  # offset that was removed, of full scale
        self._block = max(1, int(_BLOCK * sample_rate))
        self._fade = math.exp(-self._block / (_CONSTANT * sample_rate))
        self._first = _FIRST * sample_rate
        self._place = 0  # samples in the unfinished block
        self._sums = np.zeros((2, channels))  # of the samples of the unfinished block, and of their squares
        self._peak, self._peak_before = np.zeros((2, channels), np.float32)
        self._heard = np.zeros(channels)  # samples of sound so far
        self._totals = np.zeros((3, channels))  # of samples, of squares, of their weights, fading
        self._found = np.zeros(channels, bool)
        self._from, self._to = np.zeros((2, channels))  # the line over the unfinished block

    def feed(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """What is given back does not depend on how the recording is cut into blocks."""
        parts, begin = [block[:, :0]], 0
        while begin < block.shape[1]:
            part = block[:, begin : begin + self._block - self._place]
            parts.append(self._without(part) if self._found.any() else part)
            self._count(part)
            begin += part.shape[1]
        return np.concatenate(parts, axis=1)

    def remarks(self) -> list[str]:
        return [f"a DC offset of {self.largest:.2g} of full scale was removed"] if self.largest else []

    def _without(self, part: np.ndarray) -> np.ndarray:
        along = (self._place + np.arange(1, part.shape[1] + 1)) / self._block
        line = self._from[:, None] + (self._to - self._from)[:, None] * along
        peaks = np.maximum.accumulate(np.abs(part), axis=1)
        sound = np.maximum(peaks, np.maximum(self._peak, self._peak_before)[:, None]) > _SILENCE
        return np.where(sound, part - line, part).astype(np.float32)

    def _count(self, part: np.ndarray) -> None:
        wide = part.astype(np.float64)
        self._sums += np.stack([wide.sum(axis=1), np.square(wide).sum(axis=1)])
        self._peak = np.maximum(self._peak, np.abs(part).max(axis=1))
        self._place += part.shape[1]
        if self._place == self._block:
            self._end_block()

    def _end_block(self) -> None:
        sound = self._peak > _SILENCE
        new = np.stack([*self._sums, np.full(len(sound), float(self._block))])
        self._totals = np.where(sound, self._fade * self._totals + new, self._totals)
        self._heard += self._block * sound
        mean, power = self._totals[:2] / np.maximum(self._totals[2], 1.0)
        enough = np.abs(mean) > np.maximum(_FOUND * np.sqrt(power), _SMALLEST)
        self._found |= (self._heard >= self._first) & enough
        self._from, self._to = self._to, np.where(self._found, mean, 0.0)
        self.largest = max(self.largest, float(np.abs(self._to).max()))
        self._place, self._sums = 0, np.zeros_like(self._sums)
        self._peak_before, self._peak = self._peak, np.zeros_like(self._peak)
