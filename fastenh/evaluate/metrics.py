"""PESQ, STOI and SI-SDR of a waveform against its clean reference. Imports no torch: worker processes start fast."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

from fastenh.errors import ProcessingError

SAMPLE_RATE = 16_000
METRICS = ("pesq", "stoi", "si_sdr")
LABELS = {"pesq": "PESQ", "stoi": "STOI", "si_sdr": "SI-SDR"}
DIGITS = {"pesq": 3, "stoi": 3, "si_sdr": 2}


class MetricError(ProcessingError):
    """A metric that cannot be computed for these waveforms; never replaced by a number."""


def available() -> tuple[str, ...]:
    """The metrics whose packages are installed (``pip install 'fastenh[metrics]'`` for all)."""
    packages = {"pesq": "pesq", "stoi": "pystoi"}
    return tuple(m for m in METRICS if m not in packages or importlib.util.find_spec(packages[m]))


def si_sdr(estimate: np.ndarray, clean: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of the signals less their means (Le Roux et al. 2019).

    Raises ``MetricError`` on silence.
    """
    estimate, clean = (x - x.mean() if x.size else x for x in (estimate.astype(np.float64), clean.astype(np.float64)))
    energy = np.dot(clean, clean)
    if energy == 0 or not np.any(estimate):
        raise MetricError("silence has no SI-SDR")
    target = (np.dot(estimate, clean) / energy) * clean
    distortion = estimate - target
    power = np.dot(distortion, distortion)
    if power == 0:
        return float("inf")
    return float(10 * np.log10(max(np.dot(target, target), np.finfo(np.float64).tiny) / power))


def pesq(estimate: np.ndarray, clean: np.ndarray) -> float:
    """Wide-band PESQ, MOS-LQO (ITU-T P.862.2), by the package ``pesq``. Raises ``MetricError``."""
    import pesq as package

    try:
        return float(package.pesq(SAMPLE_RATE, clean, estimate, "wb"))
    except (package.PesqError, ValueError, ZeroDivisionError) as error:
        text = error.args[0] if error.args else type(error).__name__
        raise MetricError(f"PESQ: {text.decode() if isinstance(text, bytes) else text}") from error


def stoi(estimate: np.ndarray, clean: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), by ``pystoi``. Raises ``MetricError``."""
    from pystoi import stoi as package

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it returns 1e-5 with a warning for too little speech
        try:
            return float(package(clean, estimate, SAMPLE_RATE))
        except (RuntimeWarning, ValueError) as error:
            raise MetricError(f"STOI: {str(error).splitlines()[0]}") from error


_FUNCTIONS = {"pesq": pesq, "stoi": stoi, "si_sdr": si_sdr}


def score(estimate: np.ndarray, clean: np.ndarray, metrics: tuple[str, ...]) -> dict[str, float | str]:
    """Return each metric's value, or the reason why there is none. Both waveforms (L,) at 16 kHz."""
    values: dict[str, float | str] = {}
    for metric in metrics:
        try:
            values[metric] = _FUNCTIONS[metric](estimate, clean)
        except MetricError as error:
            values[metric] = str(error)
    return values
