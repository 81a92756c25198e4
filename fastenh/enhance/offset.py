"""A DC offset, found and taken out before the model hears it.

The model was trained on sound without one: an offset of 0.05 costs 8 dB of signal-to-noise ratio, one of 0.3 costs 24.
"""

from __future__ import annotations

import numpy as np

_PIECE = 4.0  # seconds that a mean is taken over, on a grid from the start of the recording
_FIRST, _LATER = 0.25, 1.0  # seconds of sound in it, at least: the mean of less is no offset, but a part of a wave
_FOUND = 0.05  # of the RMS: the means of speech and noise stay below, and what is below does no harm
_SMALLEST = 1e-4  # three steps of 16 bit
_BLOCK = 0.01  # seconds; digital silence of less is a zero crossing
_SILENCE = 1e-5


class Offset:
    """Takes a recording in blocks (C, n) and gives it back without its offset; one that has none comes back as it is.

    From where a channel's offset is found to the end, the mean of each piece is subtracted, as a line from piece to
    piece that makes no steps. Digital silence stays silence.
    """

    def __init__(self, channels: int, sample_rate: float) -> None:
        self.largest = 0.0  # offset that was removed, of full scale
        self._piece, self._block = (max(1, int(seconds * sample_rate)) for seconds in (_PIECE, _BLOCK))
        self._first, self._later = _FIRST * sample_rate, _LATER * sample_rate
        self._held = np.zeros((channels, 0), np.float32)
        self._mean = np.zeros((channels, 1))
        self._began, self._found = np.zeros((2, channels, 1), bool)  # there was sound; with an offset in it

    def feed(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """What is given back comes a piece later, all of it with the last block."""
        held = np.concatenate([self._held, block], axis=1)
        ready = held.shape[1] if last else held.shape[1] // self._piece * self._piece
        pieces = [self._without(held[:, i : min(i + self._piece, ready)]) for i in range(0, ready, self._piece)]
        self._held = held[:, ready:]
        return np.concatenate([held[:, :0], *pieces], axis=1)

    def remarks(self) -> list[str]:
        return [f"a DC offset of {self.largest:.2g} of full scale was removed"] if self.largest else []

    def _without(self, piece: np.ndarray) -> np.ndarray:
        heard = self._heard(piece)
        count = heard.sum(axis=1, keepdims=True)
        known = count >= np.where(self._began, self._later, self._first)
        mean = np.where(known, (piece * heard).sum(axis=1, keepdims=True, dtype=np.float64) / np.maximum(count, 1), 0.0)
        power = np.square(piece, dtype=np.float64).sum(axis=1, keepdims=True) / np.maximum(count, 1)
        before = self._mean
        self._found = self._found | (known & (np.abs(mean) > np.maximum(_FOUND * np.sqrt(power), _SMALLEST)))
        self._mean = np.where(known & self._found, mean, before)
        before = np.where(self._began, before, self._mean)  # where sound begins, so does its offset
        self._began = self._began | known
        if not self._found.any():
            return piece
        self.largest = max(self.largest, float(np.abs(self._mean).max()))
        line = before + (self._mean - before) * np.linspace(0.0, 1.0, piece.shape[1])
        return np.where(heard & self._found, piece - line, piece).astype(np.float32)

    def _heard(self, piece: np.ndarray) -> np.ndarray:
        """Which samples (C, n) belong to sound, and not to digital silence."""
        peaks = np.maximum.reduceat(np.abs(piece), np.arange(0, piece.shape[1], self._block), axis=1)
        return np.repeat(peaks > _SILENCE, self._block, axis=1)[:, : piece.shape[1]]
