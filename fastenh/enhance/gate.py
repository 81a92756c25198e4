"""A gate for what is no speech: between words, what the model left is turned down further.

The model itself says where there is speech: where it leaves something. That is judged by the level of what comes out of
it, beside the level of the speech so far, and by its own gain. docs/vad.md compares that with detectors made for it.
"""

from __future__ import annotations

import numpy as np

from fastenh.models.frontend import N_FFT, SAMPLE_RATE

HOP = 256  # samples at 16 kHz from gain to gain
AHEAD = 2  # frames, 32 ms, that the gate opens before speech; it costs as much delay
DEPTH_DB = 20.0  # what is no speech is turned down by
HANGOVER = 0.25  # seconds that the gate stays open behind speech
CLOSING = 0.2  # seconds in which it closes then, at a constant rate in dB; it opens within a frame, 16 ms
_LEVEL_DB, _GAIN_DB = -40.0, -35.0  # speech is above both: beside the level of the speech so far, and in the gain
_RISE, _FALL = 0.1, 20.0  # seconds: time constants of that level, a mean of the power that then falls slowly
_BAND = slice(6, 225)  # bins of the STFT, 0.2 to 7 kHz: below there is hum, above it resamplers and codecs take away
_TINY = 1e-12
_SECONDS = HOP / SAMPLE_RATE


class SpeechGate:
    """Takes noisy and enhanced sound (C, n) at 16 kHz block by block, and gives the latter with its pauses turned down.

    Frame k is centred on sample 256 * k, and decides with what lies within 256 samples of it. ``ahead``: the gate opens
    so many frames before speech, and what it gives comes 256 * (ahead + 1) samples later; with -1 it comes at once, and
    the gate opens within the frame where speech begins. Each channel has a gate of its own.
    """

    def __init__(self, channels: int, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self._noisy = np.zeros((channels, 0), np.float32)  # what the model has not answered yet
        self._held = np.zeros((2, channels, N_FFT // 2), np.float32)  # noisy and enhanced, from the next frame on
        self._waiting = np.zeros((channels, 0), np.float32)  # enhanced, whose gains have not come yet
        self._level = np.zeros((2, channels))  # of the speech: a quick mean of the power, and what it has been
        self._last = np.full(channels, np.inf)  # frames since there was speech, if there was any
        self._open = np.zeros(channels)  # dB
        self._gains = np.ones((channels, max(0, -ahead)), np.float32)  # from that of the first waiting sample on
        self._early = max(0, ahead)  # frames whose decisions are too early for a gain
        self._window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)

    def hear(self, noisy: np.ndarray) -> np.ndarray:
        """What the model is given; it is given back."""
        self._noisy = np.concatenate([self._noisy, noisy], axis=1)
        return noisy

    def give(self, enhanced: np.ndarray, last: bool = False) -> np.ndarray:
        """What the model made of it, gated; all that is left with the last."""
        count = enhanced.shape[1]
        noisy, self._noisy = self._noisy[:, :count], self._noisy[:, count:]
        self._waiting = np.concatenate([self._waiting, enhanced], axis=1)
        held = np.concatenate([self._held, np.stack([noisy, enhanced])], axis=2)
        if last:
            held = np.pad(held, ((0, 0), (0, 0), (0, N_FFT // 2 + (-held.shape[2]) % HOP)))
        frames = max(0, (held.shape[2] - N_FFT) // HOP + 1)
        self._held = held[..., frames * HOP :]
        for powers in np.moveaxis(self._powers(held, frames), 2, 0):
            self._decide(powers)
        if last:
            rest = max(0, -(-self._waiting.shape[1] // HOP) + 1 - self._gains.shape[1])
            self._gains = np.concatenate([self._gains, np.repeat(self._gain(), rest, axis=1)], axis=1)
        return self._gated(last)

    def _powers(self, held: np.ndarray, count: int) -> np.ndarray:
        """(2, C, n) -> (2, C, count)."""
        if not count:
            return held[..., :0]
        frames = np.lib.stride_tricks.sliding_window_view(held, N_FFT, axis=2)[:, :, : count * HOP : HOP]
        band = np.fft.rfft(frames * self._window)[..., _BAND]
        return (np.square(band.real) + np.square(band.imag)).sum(-1) / N_FFT**2

    def _decide(self, powers: np.ndarray) -> None:
        """The gain that a frame (2, C) brings: that of ``ahead`` frames before, which has waited for it."""
        self._last = np.where(self._is_speech(*powers), 0.0, self._last + 1)
        falling = self._open - DEPTH_DB * _SECONDS / CLOSING
        is_held = (self._last - max(0, self._ahead)) * _SECONDS <= HANGOVER
        self._open = np.where(is_held, 0.0, np.maximum(falling, -DEPTH_DB))
        if self._early:
            self._early -= 1
            return
        self._gains = np.concatenate([self._gains, self._gain()], axis=1)

    def _gain(self) -> np.ndarray:
        """(C, 1)."""
        return np.sqrt(_from_db(self._open)).astype(np.float32)[:, None]

    def _is_speech(self, noisy: np.ndarray, enhanced: np.ndarray) -> np.ndarray:
        """Of the powers (C,) of the next frame."""
        self._level[0] += (enhanced - self._level[0]) * (1 - np.exp(-_SECONDS / _RISE))
        self._level[1] = np.maximum(self._level[0], self._level[1] * np.exp(-_SECONDS / _FALL))
        is_loud = enhanced > _from_db(_LEVEL_DB) * self._level[1] + _TINY
        return is_loud & (enhanced > _from_db(_GAIN_DB) * noisy)

    def _gated(self, last: bool) -> np.ndarray:
        """What has its gains, in a straight line from each of them to the next."""
        hops = max(0, self._gains.shape[1] - 1)
        ready = self._waiting.shape[1] if last else min(hops * HOP, self._waiting.shape[1] // HOP * HOP)
        hops = -(-ready // HOP)
        begins, steps = self._gains[:, :hops], np.diff(self._gains[:, : hops + 1], axis=1)
        rising = np.arange(HOP, dtype=np.float32) / HOP
        lines = (begins[..., None] + steps[..., None] * rising).reshape(len(begins), -1)
        gated = self._waiting[:, :ready] * lines[:, :ready]
        self._waiting, self._gains = self._waiting[:, ready:], self._gains[:, hops:]
        return gated


def _from_db(db: np.ndarray | float) -> np.ndarray:
    """The ratio of two powers."""
    return np.power(10.0, np.asarray(db) / 10)
