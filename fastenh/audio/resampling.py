"""Sample rates, by soxr; with little delay by a short filter."""

from __future__ import annotations

import math

import numpy as np
import soxr

_CROSSINGS = 25  # of zero, on either side of a short filter
_KAISER = 7.857  # 80 dB


def resample(samples: np.ndarray, rate: float, new_rate: float, length: int | None = None) -> np.ndarray:
    """(C, L) -> (C, L'), band-limited, without delay; cut or padded with zeros to ``length`` frames if given."""
    if rate != new_rate and samples.shape[1]:
        # a channel at a time: with some NumPys soxr takes a single frame of several channels for not contiguous
        samples = np.stack([soxr.resample(channel, rate, new_rate, quality="HQ") for channel in samples])
    if length is None or samples.shape[1] == length:
        return samples
    return np.pad(samples[:, :length], ((0, 0), (0, max(0, length - samples.shape[1]))))


class Resampler:
    """The same for a recording that comes in blocks (C, n): what is given back may come later, none of it is lost."""

    def __init__(self, rate: float, new_rate: float, channels: int) -> None:
        same = rate == new_rate
        self._streams = [] if same else [soxr.ResampleStream(rate, new_rate, 1, quality="HQ") for _ in range(channels)]

    def feed(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        if not self._streams:
            return block
        channels = zip(self._streams, block, strict=True)
        return np.stack([stream.resample_chunk(np.ascontiguousarray(row), last) for stream, row in channels])


class ShortResampler:
    """``Resampler`` with little delay, for sound that is listened to while it is made.

    A linear-phase filter of 50 zero crossings (Kaiser window, 80 dB), from 0.45 to 0.55 of the lower rate: what comes
    back is behind by 25 samples of the lower rate, 1.6 ms at 16 kHz; soxr, which transforms whole blocks, is behind by
    up to 37 ms. The result does not depend on how the recording is cut into blocks, and a copy goes on by itself.
    Rates are whole numbers.
    """

    def __init__(self, rate: int, new_rate: int, channels: int) -> None:
        common = math.gcd(rate, new_rate)
        self._up, self._down = new_rate // common, rate // common
        self._same = rate == new_rate
        self.delay = 0
        if self._same:
            return
        cutoff = min(1.0, new_rate / rate)  # of half the input's rate
        self._half = math.ceil(_CROSSINGS / cutoff)
        away = np.arange(self._up)[:, None] / self._up + (self._half - 1) - np.arange(2 * self._half)
        weights = np.sinc(cutoff * away) * np.i0(_KAISER * np.sqrt(np.clip(1 - (away / self._half) ** 2, 0.0, 1.0)))
        self._weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)  # (phases, taps)
        self._held = np.zeros((channels, self._half - 1), np.float32)
        self.delay = self._half  # samples of the input that are waited for
        self._place = 0  # of the next sample, in units of 1 / up of an input sample from the first that is held on

    def feed(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        if self._same:
            return block
        end = np.zeros((len(block), self._half if last else 0), np.float32)
        held = np.concatenate([self._held, block, end], axis=1)
        known = (held.shape[1] - 2 * self._half + 1) * self._up  # places whose taps are all there
        places = np.arange(self._place, max(known, self._place), self._down)
        starts, phases = np.divmod(places, self._up)
        self._place += len(places) * self._down
        done = min(self._place // self._up, held.shape[1])
        self._held, self._place = held[:, done:], self._place - done * self._up
        if not len(places):
            return held[:, :0]
        taps = np.lib.stride_tricks.sliding_window_view(held, 2 * self._half, axis=1)[:, starts]
        return np.einsum("cnt,nt->cn", taps, self._weights[phases])
