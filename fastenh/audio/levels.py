"""Samples as numbers: floating point in -1..1 on our side, integers with a full scale of their own on the other."""

from __future__ import annotations

import numpy as np

_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


def to_float(samples: np.ndarray) -> np.ndarray:
    """Return float32 of the same shape, from floating-point samples, int16 or int32. Else raises ``ValueError``."""
    if samples.dtype in _FULL_SCALE:
        return samples.astype(np.float32) / np.float32(_FULL_SCALE[samples.dtype])
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples are floating point in -1..1, int16 or int32, not {samples.dtype}")
    with np.errstate(over="ignore"):  # infinity is taken for silence later on
        return samples.astype(np.float32)


def from_float(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return float32 samples as ``dtype``, one that ``to_float`` takes: integers rounded, and clipped at full scale."""
    if dtype not in _FULL_SCALE:
        return samples.astype(dtype, copy=False)
    scale = _FULL_SCALE[dtype]
    return np.clip(np.rint(samples * scale), -scale, scale - 1).astype(dtype)
