"""Noisy speech made on the fly: the pair number ``i`` of a seed is always the same pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from fastenh.data.corpus import Corpus
from fastenh.data.synthetic import synthetic_noise

_FRAME = 320  # 20 ms at 16 kHz
_EARLY = 800  # 50 ms: early reflections stay in the clean target, they help intelligibility


@dataclass(frozen=True)
class MixingConfig:
    """Ranges are drawn uniformly; a bare number is a probability unless its name has a unit."""

    snr_db: tuple[float, float] = (-5.0, 20.0)  # on the active level of the speech
    level_db: tuple[float, float] = (-38.0, -16.0)  # active speech level, dB below full scale
    speed: float = 0.3  # resampled by 0.88-1.14: pitch and tempo together
    equaliser: float = 0.4
    reverberation: float = 0.25  # needs room responses
    second_noise: float = 0.3
    babble: float = 0.1
    synthetic_noise: float = 0.25
    band_limit: float = 0.08
    clipping: float = 0.03
    noise_only: float = 0.03


class Mixer:
    """Draws (noisy, clean) pairs from corpora of speech, noise and, if given, room responses."""

    def __init__(
        self, config: MixingConfig, speech: Corpus, noise: Corpus, rooms: Corpus | None, length: int, seed: int
    ) -> None:
        self.config, self.speech, self.noise, self.rooms = config, speech, noise, rooms
        self.sample_rate, self.length, self.seed = speech.sample_rate, length, seed
        lengths = np.array([r.size for r in speech.recordings], dtype=np.float64)
        self._speech_odds = lengths / lengths.sum()
        lengths = np.sqrt([r.size for r in noise.recordings])  # long recordings more often, but not in proportion
        self._noise_odds = lengths / lengths.sum()

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(noisy, clean), each float32 (length,)."""
        rng = np.random.default_rng([self.seed, index])
        config = self.config
        dry = self._draw_speech(rng)
        level = active_rms(dry)
        gain = _from_db(rng.uniform(*config.level_db)) / max(level, 1e-5)
        speech, clean = self._in_room(rng, dry * gain)
        noise = self._draw_noise(rng)
        ratio = active_rms(speech) / max(_rms(noise), 1e-6)
        noise = noise * (ratio * _from_db(-rng.uniform(*config.snr_db)))
        if rng.random() < config.noise_only:
            speech, clean = np.zeros_like(speech), np.zeros_like(clean)
        noisy = speech + noise
        if rng.random() < config.band_limit:
            response = _low_pass(rng, self.length, self.sample_rate)
            noisy, clean = _filter(noisy, response), _filter(clean, response)
        if rng.random() < config.clipping:
            ceiling = np.abs(noisy).max() * rng.uniform(0.25, 0.9)
            noisy = np.clip(noisy, -ceiling, ceiling)
        return noisy.astype(np.float32), clean.astype(np.float32)

    def _draw_speech(self, rng: np.random.Generator) -> np.ndarray:
        index = rng.choice(len(self.speech), p=self._speech_odds)
        factor = rng.uniform(0.88, 1.14) if rng.random() < self.config.speed else 1.0
        crop = self._active_crop(rng, index, int(np.ceil(self.length * factor)) + 1)
        if factor != 1.0:
            crop = soxr.resample(crop, self.sample_rate * factor, self.sample_rate, quality="MQ")
        crop = np.pad(crop, (0, max(0, self.length - crop.size)))[: self.length]
        if rng.random() < self.config.equaliser:
            crop = _filter(crop, _random_equaliser(rng, self.length))
        return crop

    def _active_crop(self, rng: np.random.Generator, index: int, length: int) -> np.ndarray:
        """The first of a few random crops in which speech goes on for at least half of the time."""
        size = self.speech.recordings[index].size
        for _ in range(4):
            crop = self.speech.crop(index, int(rng.integers(max(1, size - length + 1))), min(length, size))
            power = _frame_power(crop)
            if np.mean(power > 1e-3 * power.max(initial=0.0)) >= 0.5 and power.max(initial=0.0) > 1e-8:
                break
        return np.pad(crop, (0, length - crop.size))

    def _in_room(self, rng: np.random.Generator, dry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(speech as the microphone hears it, target with the early reflections alone)."""
        if self.rooms is None or rng.random() >= self.config.reverberation:
            return dry, dry
        response = self.rooms[int(rng.integers(len(self.rooms)))]
        response = response[int(np.abs(response).argmax()) :]  # direct sound at 0: speech and target stay aligned
        response = response / np.sqrt(np.square(response).sum())
        return _convolve(dry, response), _convolve(dry, response[:_EARLY])

    def _draw_noise(self, rng: np.random.Generator) -> np.ndarray:
        noise = self._one_noise(rng)
        if rng.random() < self.config.second_noise:
            other = self._one_noise(rng)
            noise = noise / max(_rms(noise), 1e-6)
            noise = noise + other * (_from_db(rng.uniform(-12, 0)) / max(_rms(other), 1e-6))
        return noise

    def _one_noise(self, rng: np.random.Generator) -> np.ndarray:
        kind = rng.random()
        if kind < self.config.babble:
            return self._babble(rng)
        if kind < self.config.babble + self.config.synthetic_noise:
            return synthetic_noise(rng, self.length, self.sample_rate)
        for _ in range(4):
            index = rng.choice(len(self.noise), p=self._noise_odds)
            crop = self.noise.crop(index, int(rng.integers(self.noise.recordings[index].size)), self.length)
            if _rms(crop) > 1e-4:
                break
        if rng.random() < self.config.equaliser:
            crop = _filter(crop, _random_equaliser(rng, self.length))
        return crop

    def _babble(self, rng: np.random.Generator) -> np.ndarray:
        voices = np.zeros(self.length, dtype=np.float32)
        for _ in range(int(rng.integers(3, 8))):
            index = rng.choice(len(self.speech), p=self._speech_odds)
            voice = self.speech.crop(index, int(rng.integers(self.speech.recordings[index].size)), self.length)
            voices += voice * (_from_db(rng.uniform(-6, 6)) / max(_rms(voice), 1e-4))
        return voices


def active_rms(x: np.ndarray) -> float:
    """RMS over the 20 ms frames within 30 dB of the loudest: the level of the speech, pauses left out."""
    power = _frame_power(x)
    active = power[power >= 1e-3 * power.max(initial=0.0)]
    return float(np.sqrt(active.mean())) if active.size else 0.0


def _frame_power(x: np.ndarray) -> np.ndarray:
    frames = x[: x.size // _FRAME * _FRAME].reshape(-1, _FRAME)
    return np.square(frames).mean(axis=1)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


def _from_db(db: float) -> float:
    return 10.0 ** (db / 20.0)


def _convolve(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    size = x.size + response.size - 1
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(response, size), size)[: x.size]


def _filter(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Zero-phase filter by the gains ``response`` (length // 2 + 1,): speech and target stay aligned."""
    return np.fft.irfft(np.fft.rfft(x) * response, x.size)


def _random_equaliser(rng: np.random.Generator, length: int) -> np.ndarray:
    """Gains on a smooth random curve of +-8 dB over the octaves."""
    octaves = np.linspace(0, 1, 7)
    position = np.log2(np.linspace(1, 128, length // 2 + 1)) / 7
    return 10.0 ** (np.interp(position, octaves, rng.uniform(-8, 8, octaves.size)) / 20)


def _low_pass(rng: np.random.Generator, length: int, sample_rate: int) -> np.ndarray:
    frequencies = np.fft.rfftfreq(length, 1 / sample_rate)
    edge = rng.uniform(3000, 7000)
    return 1 / (1 + np.exp(np.clip((frequencies - edge) / 60, -50, 50)))
