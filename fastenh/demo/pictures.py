"""Pictures of a recording before and after: spectrograms, the gain between them, and the level over time."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastenh.models.frontend import N_FFT, SAMPLE_RATE

_HOP = N_FFT // 4
_COLUMNS = 800  # of a picture; more frames are averaged
_PIECE = 1 << 12  # frames that are transformed at a time
_LEVEL = SAMPLE_RATE // 20  # samples of a point of the level: 50 ms
_FLOOR = -100.0  # dB of full scale


def draw(before: np.ndarray, after: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """(what it shows, PNG) of each picture, for two waveforms (L,) at 16 kHz."""
    seconds = before.size / SAMPLE_RATE
    powers = [_spectrogram(waveform) for waveform in (before, after)]
    decibels = [10.0 * np.log10(power + 1e-10) for power in powers]
    top = float(max(picture.max() for picture in decibels))
    for name, picture in zip(("before", "after"), decibels, strict=True):
        yield f"Spectrogram {name}", _image(f"Spectrogram {name}", picture, seconds, "magma", (top - 80, top), "dB")
    gain = 10.0 * np.log10((powers[1] + 1e-10) / (powers[0] + 1e-10))
    yield "Gain", _image("Gain: after over before", gain, seconds, "viridis", (-40, 0), "dB")
    yield "Level", _levels(before, after)


def _image(
    title: str, values: np.ndarray, seconds: float, colours: str, limits: tuple[float, float], unit: str
) -> bytes:
    """Values (T, F)."""
    figure, axis = _figure(title, seconds)
    extent = (0.0, seconds, 0.0, SAMPLE_RATE / 2000)
    image = axis.imshow(values.T, colours, aspect="auto", vmin=limits[0], vmax=limits[1], origin="lower", extent=extent)
    axis.set_ylabel("frequency (kHz)")
    figure.colorbar(image, ax=axis, label=unit)
    return _png(figure)


def _levels(before: np.ndarray, after: np.ndarray) -> bytes:
    figure, axis = _figure("Level", before.size / SAMPLE_RATE)
    for label, waveform, colour in (("before", before, "#b0651d"), ("after", after, "#1f4e9c")):
        starts = np.arange(0, max(waveform.size, 1), max(_LEVEL, waveform.size // _COLUMNS))
        sizes = np.diff(np.append(starts, max(waveform.size, 1)))
        power = np.add.reduceat(np.square(waveform, dtype=np.float64), starts) / sizes
        level = np.maximum(10.0 * np.log10(power + 1e-20), _FLOOR)
        axis.plot((starts + sizes / 2) / SAMPLE_RATE, level, label=label, color=colour, linewidth=1.3)
    axis.set_ylabel("level (dBFS)")
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)
    return _png(figure)


def _figure(title: str, seconds: float) -> tuple[Figure, Axes]:
    """A small figure with large letters: on a telephone it is shown at 40 % of its size."""
    figure = Figure(figsize=(5.6, 2.9), dpi=160, layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, loc="left")
    axis.set_xlim(0.0, max(seconds, 1e-3))
    axis.set_xlabel("time (s)")
    return figure, axis


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Power (T, 257) in at most 800 columns, full scale of a sine at 1."""
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    padded = np.pad(waveform, N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::_HOP]
    together = -(-len(frames) // _COLUMNS)
    columns = []
    for begin in range(0, len(frames), _PIECE * together):
        spectrum = np.fft.rfft(frames[begin : begin + _PIECE * together] * (2 * window / window.sum()))
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        starts = np.arange(0, len(power), together)
        columns.append(np.add.reduceat(power, starts) / np.diff(np.append(starts, len(power)))[:, None])
    return np.concatenate(columns)
