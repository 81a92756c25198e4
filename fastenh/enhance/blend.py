"""The input beside its enhanced form, block by block: for shares of it, and for its length to the sample."""

from __future__ import annotations

import numpy as np

from fastenh.enhance.upper_band import UpperBand

_ABSURD = 1e15  # times full scale: squares of what is below still have a finite sum in float32


def usable(block: np.ndarray) -> np.ndarray:
    """Which samples are sound: neither NaN nor infinite, nor so large that their energy would be."""
    return np.abs(block) < _ABSURD  # false for NaN


def silenced(block: np.ndarray) -> np.ndarray:
    """The block with silence for what is no sound."""
    return np.where(usable(block), block, np.float32(0.0))


class Blend:
    """Keeps the input until its enhanced form comes, and gives the output: ``share`` of the one, the rest the other.

    ``share`` may be changed at any time, and is reached over the next samples that are given. upper_band: adds to the
    enhanced form what it lacks above 8 kHz, if given. keeps: the input even where nothing needs it yet.
    """

    def __init__(
        self, channels: int, share: float = 0.0, upper_band: UpperBand | None = None, keeps: bool = False
    ) -> None:
        self.share, self._upper_band = share, upper_band
        self._keeps = keeps or bool(share) or upper_band is not None
        self._share_before = share
        self._waiting = np.zeros((channels, 0), np.float32)  # input whose enhanced form is not there yet
        self._missing = 0  # frames of output that are owed

    def take(self, block: np.ndarray) -> np.ndarray:
        """Take the input (C, n), and return it."""
        self._missing += block.shape[1]
        if self._keeps:
            self._waiting = np.concatenate([self._waiting, block], axis=1)
        return block

    def give(self, enhanced: np.ndarray, last: bool = False) -> np.ndarray:
        """Return the output that ``enhanced`` (C, n) brings; the last one completes the length, or is cut to it."""
        enhanced = enhanced[:, : self._missing]
        if last:
            enhanced = np.pad(enhanced, ((0, 0), (0, self._missing - enhanced.shape[1])))
        count = enhanced.shape[1]
        self._missing -= count
        if not self._keeps:
            return enhanced
        noisy, self._waiting = self._waiting[:, :count], self._waiting[:, count:]
        if self._upper_band is not None:
            enhanced = enhanced + self._upper_band.upper(noisy)
        share: float | np.ndarray = self.share
        if count and share != self._share_before:
            share = np.linspace(self._share_before, self.share, count, dtype=np.float32)
            self._share_before = self.share
        elif not share:
            return enhanced
        return enhanced + share * (noisy - enhanced)
