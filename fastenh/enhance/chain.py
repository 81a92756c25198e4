"""What surrounds the model: rates, offset, the band above 8 kHz, shares of the input, and remarks on all of it."""

from __future__ import annotations

import math

import numpy as np

from fastenh.audio.files import RATES
from fastenh.audio.levels import to_float
from fastenh.audio.resampling import Resampler, ShortResampler
from fastenh.enhance.blend import Blend, silenced
from fastenh.enhance.gate import AHEAD, SpeechGate
from fastenh.enhance.offset import Offset
from fastenh.enhance.running_offset import RunningOffset
from fastenh.enhance.suitability import Clipping, Suitability
from fastenh.enhance.upper_band import UpperBand
from fastenh.errors import ProcessingError
from fastenh.models.frontend import SAMPLE_RATE

_AT_ONCE = -1  # frames that the gate for pauses looks ahead live: it opens within the frame where speech begins
UPPER_BAND_DELAY = 512  # samples at 16 kHz that come in whole hops


class EnhancementError(ProcessingError, RuntimeError):
    """An output that is no sound, or silence where there was sound."""


class Chain:
    """One recording on its way: ``hear`` takes its blocks (C, n) and gives what the model is to hear, at 16 kHz;
    ``make`` takes what the model made of it and gives the output, at the rate of the recording.

    vad: pauses are turned down further (``gate.py``). live: nothing is waited for that can be done without; offsets are
    found as they come, and rates are changed by short filters. ``watches`` says whether it also looks for what the
    model was not made for, which takes time.
    """

    def __init__(
        self,
        channels: int,
        sample_rate: float,
        atten_lim_db: float | None,
        bandwidth: str,
        *,
        vad: bool = False,
        live: bool = False,
        watches: bool = True,
    ) -> None:
        self.channels, self.sample_rate = channels, sample_rate
        keeps_upper_band = bandwidth == "full" and sample_rate > SAMPLE_RATE
        self.upper_band = UpperBand(channels, sample_rate) if keeps_upper_band else None
        self._gate = SpeechGate(channels, _AT_ONCE if live else AHEAD) if vad else None
        self.blend = Blend(channels, share_of(atten_lim_db), self.upper_band, keeps=live)
        self.offset = (RunningOffset if live else Offset)(channels, sample_rate)
        self.down: Resampler | ShortResampler
        self.up: Resampler | ShortResampler
        if live:
            rate = round(sample_rate)
            self.down, self.up = (
                ShortResampler(*pair, channels) for pair in ((rate, SAMPLE_RATE), (SAMPLE_RATE, rate))
            )
        else:
            self.down = Resampler(sample_rate, SAMPLE_RATE, channels)
            self.up = Resampler(SAMPLE_RATE, sample_rate, channels)
        self._clipping = Clipping(channels, sample_rate) if watches else None
        self._suitability = Suitability(channels) if watches else None

    def hear(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """The last block ends it; it may be ``nothing``."""
        block = silenced(as_block(block, self.channels))
        if self._clipping:
            self._clipping.feed(block, last)
        low = self.down.feed(self.blend.take(self.offset.feed(block, last)), last)
        if self._suitability:
            self._suitability.give(low)
        low = self._gate.hear(low) if self._gate else low
        return self.upper_band.hear(low) if self.upper_band else low

    def make(self, enhanced: np.ndarray) -> np.ndarray:
        if self._suitability:
            self._suitability.take(enhanced)
        enhanced = self._gate.give(enhanced) if self._gate else enhanced
        return self.blend.give(self.up.feed(self.upper_band.lower(enhanced) if self.upper_band else enhanced))

    def finish(self) -> np.ndarray:
        """The rest of the output, which completes its length."""
        rest = self._gate.give(self.nothing, last=True) if self._gate else self.nothing
        rest = self.upper_band.lower(rest, last=True) if self.upper_band else rest
        return self.blend.give(self.up.feed(rest, last=True), last=True)

    def delay(self, of_model: int) -> int:
        """Samples that the live form's output is behind, with a model that is so by ``of_model`` samples at 16 kHz."""
        assert isinstance(self.down, ShortResampler)
        assert isinstance(self.up, ShortResampler)
        low = of_model + (UPPER_BAND_DELAY if self.upper_band else 0) + self.up.delay
        return math.ceil(low * self.sample_rate / SAMPLE_RATE) + self.down.delay

    @property
    def nothing(self) -> np.ndarray:
        return np.zeros((self.channels, 0), np.float32)

    @property
    def is_silenced(self) -> bool:
        """Whether the model made silence of sound, of which nothing is kept."""
        return self._suitability is not None and self._suitability.is_silenced and not self.blend.share

    def remarks(self) -> list[str]:
        """In words, at the end: what was done besides, and what the model was not made for."""
        if self._suitability is None or self._clipping is None:
            return self.offset.remarks()
        self._suitability.take(self.nothing, last=True)
        return [*self.offset.remarks(), *self._clipping.remarks(), *self._suitability.remarks()]


def share_of(atten_lim_db: float | None) -> float:
    """Of the input, which is kept so that nothing is turned down by more."""
    if atten_lim_db is None:
        return 0.0
    if math.isnan(atten_lim_db):
        raise ValueError("atten_lim_db is not a number")
    return float(10.0 ** (-abs(atten_lim_db) / 20.0))


def check_rate(sample_rate: float) -> None:
    low, high = RATES
    if not low <= sample_rate <= high:
        raise ValueError(f"sample_rate is in Hz, {low:,} to {high:,}, not {sample_rate}")


def as_block(block: np.ndarray, channels: int) -> np.ndarray:
    """float32 (channels, n)."""
    block = np.asarray(block)
    rows = block[None] if block.ndim == 1 else block
    if rows.ndim != 2 or rows.shape[0] != channels:
        transposed = rows.ndim == 2 and rows.shape[1] == channels
        raise ValueError(
            f"a block is (channels, samples) of {channels} channels, not {block.shape}"
            + (": transpose it" if transposed else "")
        )
    return to_float(rows)
