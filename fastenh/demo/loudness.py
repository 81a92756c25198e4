"""Loudness, so that a listener compares two versions of a recording and not their volumes."""

from __future__ import annotations

import numpy as np

_BLOCK, _STEP = 0.4, 0.1  # seconds: blocks of 400 ms, three quarters of each shared with the next
_ABSOLUTE, _RELATIVE = -70.0, -10.0  # LUFS, and LU below what is louder than that: blocks below count as pauses
_OFFSET = -0.691  # dB, so that a sine of 997 Hz at full scale has -3.01 LUFS
MOST = 20.0  # dB that one version is turned up against the other: hardly anything is left of it beyond
# The two filters of the weighting as (numerator, denominator) at 48 kHz: the head, and a high-pass.
_FILTERS = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)


def loudness(samples: np.ndarray, rate: int) -> float | None:
    """LUFS of one channel (L,) (ITU-R BS.1770, its filters applied to the spectra of the blocks).

    None where there is nothing to hear.
    """
    size = max(1, round(_BLOCK * rate))
    padded = np.pad(samples, (0, max(0, size - samples.size)))
    blocks = np.lib.stride_tricks.sliding_window_view(padded, size)[:: max(1, round(_STEP * rate))]
    weights = _weights(size, rate)
    power = np.array([np.dot(np.square(np.abs(np.fft.rfft(block))), weights) for block in blocks])
    for threshold in (_ABSOLUTE, None):
        level = _OFFSET + 10.0 * np.log10(np.maximum(power, 1e-20))
        heard = power[level > (_lufs(power) + _RELATIVE if threshold is None else threshold)]
        if not heard.size:
            return None
        power = heard
    return _lufs(power)


def equally_loud(before: np.ndarray, after: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Both as loud as ``before``, or softer where one would clip; and the dB that ``after`` was turned up by."""
    wanted, found = loudness(before, rate), loudness(after, rate)
    gain = 0.0 if wanted is None or found is None else float(np.clip(wanted - found, -MOST, MOST))
    after = after * np.float32(10.0 ** (gain / 20.0))
    peak = max(1.0, *(float(np.abs(x).max(initial=0.0)) for x in (before, after)))
    return before / np.float32(peak), after / np.float32(peak), gain


def _lufs(power: np.ndarray) -> float:
    return _OFFSET + 10.0 * float(np.log10(power.mean()))


def _weights(size: int, rate: int) -> np.ndarray:
    """What the squared magnitude of each bin of a block's spectrum adds to its mean square."""
    z = np.exp(-2j * np.pi * np.minimum(np.fft.rfftfreq(size, 1 / rate), 24_000) / 48_000)
    weights = np.full(z.size, 2.0 / size**2)
    for numerator, denominator in _FILTERS:
        weights *= np.square(np.abs(np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)))
    return weights
