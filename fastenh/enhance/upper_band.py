"""The band above 8 kHz, which the model does not hear: it is kept, and follows what the model does right below it.

A recording x of more than 16 kHz is its form at 16 kHz, taken up again, and a rest that this loses: the band above
8 kHz. The model makes e of the form at 16 kHz, x16, and the rest is multiplied by a gain g. Since g changes slowly, it
may as well be multiplied before the rate is changed, and one resampler does for both:

    up(e) + g * (x - up(x16))  =  up(e - g * x16) + g * x
"""

from __future__ import annotations

import numpy as np

from fastenh.models.frontend import N_FFT, SAMPLE_RATE

HOP = 256  # samples at 16 kHz from gain to gain
_TOP = slice(128, 225)  # bins of the STFT, 4 to 7 kHz: above that resamplers and codecs have taken something away
_TINY = 1e-20
_NO_SPEECH, _SPEECH = 0.05, 0.15  # -26 and -16 dB: a gain below the one becomes 0, from the other on it is kept


class TopBandGain:
    """What a model does to the top of its band, frame by frame: the gain that the band above it follows.

    Takes the noisy recording and the enhanced one at 16 kHz, in blocks, and gives sqrt(|Y|^2 / |X|^2), both summed over
    4 to 7 kHz and weighted 1, 2, 1 over neighbouring frames, never above 1. Where it is below -26 dB the model has
    found no speech, and the gain is 0. Frame k is centred on sample 256 * k; its gain is known 512 samples later.
    """

    def __init__(self, channels: int) -> None:
        self._held = np.zeros((2, channels, N_FFT // 2), np.float32)  # noisy and enhanced, from the next frame on
        self._energies = np.zeros((2, channels, 1), np.float32)  # of frames whose neighbours have not come yet
        self._window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)

    def feed(self, noisy: np.ndarray, enhanced: np.ndarray, last: bool = False) -> np.ndarray:
        """float32 (C, n) each -> the gains (C, k) that they bring; in all, with the last block, ceil(L / 256) + 1."""
        held = np.concatenate([self._held, np.stack([noisy, enhanced])], axis=2)
        if last:
            held = np.pad(held, ((0, 0), (0, 0), (0, N_FFT // 2 + (-held.shape[2]) % HOP)))
        count = max(0, (held.shape[2] - N_FFT) // HOP + 1)
        self._held = held[..., count * HOP :]
        energies = np.concatenate([self._energies, self._frame_energies(held, count)], axis=2)
        if last:
            energies = np.pad(energies, ((0, 0), (0, 0), (0, 1)))
        self._energies = energies[..., -2:]
        given, kept = energies[..., :-2] + 2 * energies[..., 1:-1] + energies[..., 2:]
        gain = np.minimum(np.sqrt(kept / np.maximum(given, _TINY)), 1.0)
        return gain * np.clip((gain - _NO_SPEECH) / (_SPEECH - _NO_SPEECH), 0.0, 1.0)

    def _frame_energies(self, held: np.ndarray, count: int) -> np.ndarray:
        """(2, C, n) -> (2, C, count)."""
        if not count:
            return held[..., :0]
        frames = np.lib.stride_tricks.sliding_window_view(held, N_FFT, axis=2)[:, :, : count * HOP : HOP]
        top = np.fft.rfft(frames * self._window)[..., _TOP]
        return np.square(top.real).sum(-1) + np.square(top.imag).sum(-1)


class UpperBand:
    """Both products with the gain: what is taken off at 16 kHz, and the gains at the rate of the recording."""

    def __init__(self, channels: int, sample_rate: float) -> None:
        self._estimator = TopBandGain(channels)
        self._step = SAMPLE_RATE / (HOP * sample_rate)  # frames of gain for a sample
        self._noisy = np.zeros((channels, 0), np.float32)  # at 16 kHz: what the model has not answered yet
        self._heard = np.zeros((2, channels, 0), np.float32)  # noisy and enhanced, whose gains have not come yet
        self._gains = np.zeros((channels, 0), np.float32)
        self._frame = 0  # number of the first of the gains
        self._given = 0  # samples at the rate of the recording

    def hear(self, noisy: np.ndarray) -> np.ndarray:
        """What the model is given, (C, n) at 16 kHz; it is given back."""
        self._noisy = np.concatenate([self._noisy, noisy], axis=1)
        return noisy

    def lower(self, enhanced: np.ndarray, last: bool = False) -> np.ndarray:
        """What the model made of it, less what ``upper`` brings back: 768 samples later, all with the last."""
        count = enhanced.shape[1]
        noisy, self._noisy = self._noisy[:, :count], self._noisy[:, count:]
        gains = np.concatenate([self._gains[:, -1:], self._estimator.feed(noisy, enhanced, last)], axis=1)
        self._gains = np.concatenate([self._gains[:, :-1], gains], axis=1)
        self._heard = np.concatenate([self._heard, np.stack([noisy, enhanced])], axis=2)
        hops = max(0, gains.shape[1] - 1)
        ready = self._heard.shape[2] if last else hops * HOP
        (noisy, enhanced), self._heard = self._heard[..., :ready], self._heard[..., ready:]
        rising = np.arange(HOP, dtype=np.float32) / HOP
        steps = np.diff(gains, axis=1)[..., None]
        lines = (gains[:, :hops, None] + steps * rising).reshape(len(gains), -1)
        return enhanced - lines[:, :ready] * noisy

    def upper(self, noisy: np.ndarray) -> np.ndarray:
        """The next samples of the recording (C, n), at its rate, times their gains."""
        if not noisy.size:
            return noisy
        places = (self._given + np.arange(noisy.shape[1])) * self._step - self._frame
        self._given += noisy.shape[1]
        frames = np.arange(self._gains.shape[1])
        product = np.stack([np.interp(places, frames, row) for row in self._gains]).astype(np.float32) * noisy
        done = min(int(self._given * self._step) - self._frame, self._gains.shape[1] - 1)
        self._gains, self._frame = self._gains[:, max(done, 0) :], self._frame + max(done, 0)
        return product
