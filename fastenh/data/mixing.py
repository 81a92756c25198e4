"""Noisy speech made on the fly, a batch at a time, on the device that holds the corpora: the pair number ``i`` of a
seed is always the same pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastenh.data.corpus import Corpus
from fastenh.data.degradations import FASTEST, clip, codec, equalise, low_pass, respeed
from fastenh.data.draws import Draws
from fastenh.data.filters import active_rms, convolve, frame_power, from_db, rms
from fastenh.data.settings import DecibelRange, Probability
from fastenh.data.synthetic import synthetic_noise

_EARLY = 800  # 50 ms: early reflections stay in the clean target, they help intelligibility
_TRIES = 4
_VOICES = 7
_SPARSE = 8  # of so many samples one is looked at where a crop is chosen


@dataclass(frozen=True)
class MixingConfig:
    """Ranges are drawn uniformly; a bare number is a probability unless its name has a unit."""

    snr_db: DecibelRange = (-5.0, 20.0)  # on the active level of the speech
    level_db: DecibelRange = (-38.0, -16.0)  # active speech level, dB below full scale
    speed: Probability = 0.3  # resampled by 0.88-1.14: pitch and tempo together
    equaliser: Probability = 0.4
    reverberation: Probability = 0.25  # needs room responses
    second_noise: Probability = 0.3
    babble: Probability = 0.1
    synthetic_noise: Probability = 0.25
    band_limit: Probability = 0.08
    clipping: Probability = 0.03
    codec: Probability = 0.03
    noise_only: Probability = 0.03


class Mixer:
    """Draws (noisy, clean) pairs from corpora of speech, noise and, if given, room responses, all on one device."""

    def __init__(
        self, config: MixingConfig, speech: Corpus, noise: Corpus, rooms: Corpus | None, length: int, seed: int
    ) -> None:
        self.config, self.speech, self.noise = config, speech, noise
        self.sample_rate, self.length, self.seed = speech.sample_rate, length, seed
        self._responses = None if rooms is None else _room_responses(rooms).to(speech.device)
        self._speech_odds = _cumulative(speech.sizes)
        self._noise_odds = _cumulative(noise.sizes.sqrt())  # long recordings more often, but not in proportion

    def pairs(self, examples: Sequence[int] | range) -> tuple[Tensor, Tensor]:
        """Return (noisy, clean), each float32 (B, length): the pairs of these numbers."""
        config = self.config
        draws = Draws.of(self.seed, examples, self.speech.device)
        speech, clean = self._draw_speech(draws).unbind(1)
        noise = self._draw_noise(draws)
        ratio = active_rms(speech) / rms(noise).clamp_min(1e-6)
        noise = noise * (ratio * from_db(-draws.uniform(*config.snr_db, 1).float()))
        heard = ~draws.chance(config.noise_only)[:, None]
        both = torch.stack([speech * heard + noise, clean * heard], 1)
        limited = draws.chance(config.band_limit)
        both = draws.on_rows(limited, lambda draws, x: low_pass(draws, x, self.sample_rate), both)
        noisy, clean = both.unbind(1)
        noisy = draws.on_rows(draws.chance(config.clipping), clip, noisy)
        noisy = draws.on_rows(draws.chance(config.codec), codec, noisy)
        return noisy.contiguous(), clean.contiguous()

    def _draw_speech(self, draws: Draws) -> Tensor:
        """(B, 2, L): what the microphone hears of the speech, and the target with the early reflections alone."""
        config = self.config
        dry = draws.on_rows(draws.chance(config.speed), respeed, self._active_crop(draws))[:, : self.length]
        dry = draws.on_rows(draws.chance(config.equaliser), equalise, dry)
        dry = dry * (from_db(draws.uniform(*config.level_db, 1).float()) / active_rms(dry).clamp_min(1e-5))
        both = torch.stack([dry, dry], 1)
        if self._responses is None:
            return both
        return draws.on_rows(draws.chance(config.reverberation), self._in_room, both)

    def _active_crop(self, draws: Draws) -> Tensor:
        """The first of a few random crops in which speech goes on for at least half of the time; a little longer than
        the pair, since it may be played faster."""
        index = _pick(draws, self._speech_odds)
        tries = index[:, None].expand(-1, _TRIES)
        starts = draws.integers(0, (self.speech.sizes[tries] - self.length + 1).clamp_min(1), _TRIES)
        steps = torch.arange(math.ceil(self.length * FASTEST), device=draws.device)
        power = frame_power(self.speech.at(tries, starts[..., None] + steps[: self.length : _SPARSE]), _SPARSE)
        loudest = power.amax(-1, keepdim=True)
        active = (power > 1e-3 * loudest).float().mean(-1) >= 0.5
        start = _first(active & (loudest[..., 0] > 1e-8), starts)
        return self.speech.at(index, start[:, None] + steps)

    def _in_room(self, draws: Draws, both: Tensor) -> Tensor:
        assert self._responses is not None  # else nobody comes here
        response = self._responses[draws.integers(0, len(self._responses))]
        return torch.stack([convolve(both[:, 0], response), convolve(both[:, 1], response[:, :_EARLY])], 1)

    def _draw_noise(self, draws: Draws) -> Tensor:
        return draws.on_rows(draws.chance(self.config.second_noise), self._add_noise, self._one_noise(draws))

    def _add_noise(self, draws: Draws, noise: Tensor) -> Tensor:
        other = self._one_noise(draws)
        gain = from_db(draws.uniform(-12, 0, 1).float()) / rms(other).clamp_min(1e-6)
        return noise / rms(noise).clamp_min(1e-6) + other * gain

    def _one_noise(self, draws: Draws) -> Tensor:
        kind = draws.uniform()
        babble, synthetic = self.config.babble, self.config.babble + self.config.synthetic_noise
        noise = draws.on_rows(draws.chance(self.config.equaliser), equalise, self._recorded_noise(draws))
        noise = draws.on_rows(kind < babble, self._babble, noise)
        chosen = (kind >= babble) & (kind < synthetic)
        return draws.on_rows(chosen, lambda draws, _: synthetic_noise(draws, self.length, self.sample_rate), noise)

    def _recorded_noise(self, draws: Draws) -> Tensor:
        """The first of a few crops that is not silent."""
        index = _pick(draws, self._noise_odds, _TRIES)
        starts = draws.integers(0, self.noise.sizes[index], _TRIES)
        sparse = torch.arange(0, self.length, _SPARSE, device=draws.device)
        size = self.noise.sizes[index][..., None]
        heard = rms(self.noise.at(index, (starts[..., None] + sparse) % size))[..., 0] > 1e-4
        return self.noise.wrapped(_first(heard, index), _first(heard, starts), self.length)

    def _babble(self, draws: Draws, noise: Tensor) -> Tensor:
        index = _pick(draws, self._speech_odds, _VOICES)
        voices = self.speech.wrapped(index, draws.integers(0, self.speech.sizes[index], _VOICES), self.length)
        count = draws.integers(3, _VOICES + 1)
        present = torch.arange(_VOICES, device=draws.device) < count[:, None]
        gains = from_db(draws.uniform(-6, 6, _VOICES).float()) * present / rms(voices)[..., 0].clamp_min(1e-4)
        return torch.einsum("bv,bvl->bl", gains, voices)


def _cumulative(weights: Tensor) -> Tensor:
    total = weights.double().cumsum(0)
    return total / total[-1]


def _pick(draws: Draws, odds: Tensor, *shape: int) -> Tensor:
    """int64 (B, *shape): numbers of recordings, by cumulative odds."""
    return torch.searchsorted(odds, draws.uniform(0.0, 1.0, *shape), right=True).clamp_max(len(odds) - 1)


def _first(good: Tensor, values: Tensor) -> Tensor:
    """(B,): of the (B, tries) values the first good one, the last where none is."""
    last = torch.ones_like(good[:, :1])
    choice = torch.cat([good[:, :-1], last], 1).int().argmax(1, keepdim=True)
    return values.gather(1, choice)[:, 0]


def _room_responses(rooms: Corpus) -> Tensor:
    """(rooms, longest), each of energy 1 with its direct sound at 0: speech and target stay aligned."""
    responses = []
    for index in range(len(rooms)):
        response = torch.from_numpy(rooms.recording(index)).float()
        response = response[int(response.abs().argmax()) :]
        responses.append(response / response.square().sum().sqrt().clamp_min(1e-9))
    return torch.nn.utils.rnn.pad_sequence(responses, batch_first=True)
