"""Sample rates, by soxr."""

from __future__ import annotations

import numpy as np
import soxr


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
