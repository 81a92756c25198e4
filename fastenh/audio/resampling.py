"""Sample rates, by soxr."""

from __future__ import annotations

import numpy as np
import soxr


def resample(samples: np.ndarray, rate: float, new_rate: float, length: int | None = None) -> np.ndarray:
    """(C, L) -> (C, L'), band-limited, without delay; cut or padded with zeros to ``length`` frames if given."""
    if rate != new_rate and samples.shape[1]:
        samples = np.ascontiguousarray(soxr.resample(samples.T, rate, new_rate, quality="HQ").T)
    if length is None or samples.shape[1] == length:
        return samples
    return np.pad(samples[:, :length], ((0, 0), (0, max(0, length - samples.shape[1]))))
