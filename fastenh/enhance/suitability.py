"""Sound that the model was not made for, recognised from what goes into the model and what comes out of it.

The rates at which this is right and wrong, on recordings of each kind, are in docs/report.md.
"""

from __future__ import annotations

import math

import numpy as np

from fastenh.models.frontend import N_FFT, SAMPLE_RATE

_PIECE = 1 << 17  # samples, 8 s, that are looked at together
_HOP = N_FFT // 2
_AUDIBLE = 1e-6  # mean square: -60 dBFS
_LOST = 1e-12  # of the energy: no noise suppression takes 120 dB off a whole recording
_LOSS_DB = 15.0  # speech in noise of the same loudness loses 3 dB, speech 5 dB below it 6
_LOWEST = 6  # bins: what is below 170 Hz is hum
_HELD = 20  # frames, 0.3 s, that a steady tone lasts: those of speech glide
_PEAK = 10.0  # times the energy of the bins beside it
_TONAL = 0.2  # of the energy; in clean speech up to 0.17
_BANDS = (6, 14, 30, 62, 110)  # bins; the octaves up to 3.4 kHz
_LOUD, _ENDED = 20.0, 15.0  # dB: how far speech may be below the loudest, and falls where it ends
_SOON, _LATE = 6, 18  # frames behind the last of the speech: 0.1 and 0.3 s
_ENDS = 8  # of speech, at least, to judge a room by
_DROP_DB = 10.0  # within the first 0.1 s; in a small room 20 to 30
_SLOWEST, _FASTEST = 12.0, 80.0  # dB/s: 60 dB in 5 and in 0.75 s, the longest of the rooms in training
_SURE = 3.0  # standard errors from 0 dB/s: what noise does by chance is less
_TOP, _BELOW = 0.99, 0.9  # of the largest sample: clipped is what lies between the first and 1
_CLIPPED = 0.001  # of the samples
_QUIET = 1e-3  # of full scale: below it the steps of 16 bit are flat tops
_FLAT = 0.7  # times as many as lie between the two; of a sine, whose tops are flat by nature, it is 0.46


class Clipping:
    """Counts flat tops in a recording that comes in blocks (C, n)."""

    def __init__(self, channels: int, sample_rate: float) -> None:
        self._piece = max(1, int(sample_rate))
        self._held = np.zeros((channels, 0), np.float32)
        self._largest = 0.0
        self._values = self._top = self._below = 0

    def feed(self, block: np.ndarray, last: bool = False) -> None:
        held = np.concatenate([self._held, block], axis=1)
        ready = held.shape[1] if last else held.shape[1] // self._piece * self._piece
        for begin in range(0, ready, self._piece):
            self._count(held[:, begin : min(begin + self._piece, ready)])
        self._held = held[:, ready:]

    def _count(self, piece: np.ndarray) -> None:
        self._values += piece.size
        varying = piece - piece.mean(axis=1, keepdims=True)
        self._largest = max(self._largest, float(np.abs(varying).max()))
        for side in (varying, -varying):
            largest = side.max(axis=1)
            is_loud = largest > max(self._largest / 2, _QUIET)
            near = side[is_loud] / largest[is_loud, None]
            top = int(np.count_nonzero(near >= _TOP))
            self._top += top
            self._below += int(np.count_nonzero(near >= _BELOW)) - top

    def remarks(self) -> list[str]:
        share = self._top / max(self._values, 1)
        if share < _CLIPPED or self._top < _FLAT * self._below:
            return []
        return [f"{100 * share:.2g} % of the samples are clipped, which the model does not mend"]


class Suitability:
    """Compares what the model gets with what it gives, both in blocks (C, n) at 16 kHz; the latter come later."""

    def __init__(self, channels: int) -> None:
        self._given = self._made = np.zeros((channels, 0), np.float32)
        self._values, self._heard, self._kept = 0, 0.0, 0.0  # samples; energy of what the model gets and gives
        self._power = self._tones = 0.0  # of what it gives; that of the steady tones in it
        self._ends = 0  # of speech, in a band
        self._drops = self._falls = self._squares = 0.0  # sums over them

    def give(self, block: np.ndarray) -> None:
        """What the model gets."""
        self._given = np.concatenate([self._given, block], axis=1)
        self._values += block.size
        self._heard += _energy(block)

    def take(self, block: np.ndarray, last: bool = False) -> None:
        """What it makes of it."""
        self._made = np.concatenate([self._made, block], axis=1)
        self._kept += _energy(block)
        while (length := min(_PIECE, self._made.shape[1])) == _PIECE or (last and length):
            self._look(_spectra(self._given[:, :length]), _spectra(self._made[:, :length]))
            self._given, self._made = self._given[:, length:], self._made[:, length:]

    def _look(self, given: np.ndarray, made: np.ndarray) -> None:
        """Power (C, T, 257)."""
        self._power += float(made.sum(dtype=np.float64))
        self._tones += float(made[_steady(made)].sum(dtype=np.float64))
        before, after = _levels(given), _levels(made)
        frames = before.shape[1] - _LATE
        if frames < 1:
            return
        loud = after[:, :frames] > before.max(axis=1, keepdims=True) - _LOUD
        ended = after[:, :frames] - _ENDED
        ends = loud & (after[:, _SOON : frames + _SOON] < ended) & (after[:, _LATE:] < ended)
        ends &= after[:, 2 * _SOON : frames + 2 * _SOON] < ended
        soon = before[:, _SOON : frames + _SOON]
        falls = (soon - before[:, _LATE:])[ends] / ((_LATE - _SOON) * _HOP / SAMPLE_RATE)
        self._ends += falls.size
        self._drops += float((before[:, :frames] - soon)[ends].sum())
        self._falls += float(falls.sum())
        self._squares += float(np.square(falls).sum())

    @property
    def is_audible(self) -> bool:
        """Whether the model got more than a whisper."""
        return self._heard > _AUDIBLE * self._values

    @property
    def is_silenced(self) -> bool:
        """Whether the model made silence of sound."""
        return self.is_audible and self._kept < _LOST * self._heard

    def remarks(self) -> list[str]:
        if not self.is_audible:
            return []
        loss = -10 * math.log10(max(self._kept / self._heard, _LOST))
        if loss > _LOSS_DB:
            return [
                f"the model took {loss:.0f} dB off: hardly any of it is speech to it, "
                "and it was not made for music, singing or tones"
            ]
        found = []
        if self._tones > _TONAL * self._power:
            share = 100 * self._tones / self._power
            found.append(
                f"{share:.0f} % of what is left is steady tones, as of music or singing: "
                "the model was not made for them"
            )
        fall = self._fall()
        if fall:
            found.append(f"very reverberant: sounds take about {60 / fall:.1f} s to fall by 60 dB")
        return found

    def _fall(self) -> float:
        """dB/s by which sound dies away in a large room; 0 where it is none.

        The model takes reverberation off. Where its output ends, its input goes on: falling, and not by much at once.
        In noise it stays, and where there is neither it falls at once.
        """
        if self._ends < _ENDS or self._drops > _DROP_DB * self._ends:
            return 0.0
        mean = self._falls / self._ends
        error = math.sqrt(max(self._squares / self._ends - mean**2, 0.0) / self._ends)
        return mean if _SLOWEST < mean < _FASTEST and mean > _SURE * error else 0.0


def _energy(block: np.ndarray) -> float:
    return float(np.square(block, dtype=np.float64).sum())


def _spectra(samples: np.ndarray) -> np.ndarray:
    """(C, T, 257) of (C, L)."""
    if samples.shape[1] < N_FFT:
        return np.zeros((samples.shape[0], 0, N_FFT // 2 + 1), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, N_FFT, axis=1)[:, ::_HOP]
    spectrum = np.fft.rfft(frames * np.hanning(N_FFT + 1)[:-1].astype(np.float32))
    return np.square(spectrum.real) + np.square(spectrum.imag)


def _levels(power: np.ndarray) -> np.ndarray:
    """dB (C, T, 4) in octaves."""
    octaves = np.add.reduceat(power, _BANDS, axis=2)[..., :-1]
    return 10.0 * np.log10(octaves + 1e-12)


def _steady(power: np.ndarray) -> np.ndarray:
    """Which elements (C, T, F) belong to a tone that stays where it is."""
    inner = power[..., 3:-3]
    beside = (power[..., :-6] + power[..., 1:-5] + power[..., 5:-1] + power[..., 6:]) / 4
    peaks = np.zeros(power.shape, bool)
    peaks[..., 3:-3] = (inner >= power[..., 2:-4]) & (inner >= power[..., 4:-2]) & (inner > _PEAK * beside)
    steady = np.zeros(power.shape, bool)
    starts = power.shape[1] - _HELD + 1
    if starts > 0:
        held = np.lib.stride_tricks.sliding_window_view(peaks, _HELD, axis=1).all(axis=-1)
        for step in range(_HELD):
            steady[:, step : step + starts] |= held
    steady[..., :_LOWEST] = False
    wide = steady.copy()
    wide[..., 1:] |= steady[..., :-1]
    wide[..., :-1] |= steady[..., 1:]
    return wide
