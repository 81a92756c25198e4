"""Sound that is still being made: blocks of any size in, as many samples out, as soon as they can be known."""

from __future__ import annotations

import copy

import numpy as np
import torch

from fastenh.enhance.chain import Chain, EnhancementError, check_rate
from fastenh.models.frontend import SAMPLE_RATE
from fastenh.models.live import HOP, LiveModel

RATES = 8_000, 192_000  # Hz, whole numbers
_PORTION = 64  # hops at a time: more are no quicker


class Hops:
    """The model on blocks (C, n) at 16 kHz, channel by channel: as many samples come out, 256 to 511 of them later."""

    def __init__(self, model: LiveModel, channels: int) -> None:
        self._model, self._state = model, model.start(channels)
        self._held = np.zeros((channels, 0), np.float32)
        self._delay = HOP  # samples before the first one, to be left out
        self._owed = 0

    def feed(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        self._owed += block.shape[1]
        held = np.concatenate([self._held, block], axis=1)
        if last:
            held = np.pad(held, ((0, 0), (0, -held.shape[1] % HOP + HOP)))
        ready = held.shape[1] // HOP * HOP
        self._held = held[:, ready:]
        parts = [self._run(held[:, i : min(i + _PORTION * HOP, ready)]) for i in range(0, ready, _PORTION * HOP)]
        made = np.concatenate([held[:, :0], *parts], axis=1)
        left_out = min(self._delay, made.shape[1])
        self._delay -= left_out
        made = made[:, left_out : left_out + self._owed]
        self._owed -= made.shape[1]
        return made

    def _run(self, samples: np.ndarray) -> np.ndarray:
        device = self._model.inverse_window.device
        try:
            made, self._state = self._model(torch.from_numpy(samples).to(device), self._state)
        except RuntimeError as error:
            raise EnhancementError(f"the model failed: {str(error).splitlines()[0]}") from error
        enhanced: np.ndarray = made.cpu().numpy()
        if not np.isfinite(enhanced).all():
            raise EnhancementError("the model gave NaN or infinite samples; its weights may be damaged")
        return enhanced

    def copy(self) -> Hops:
        other = copy.copy(self)
        other._state = self._state.copy()
        return other


class LiveEnhancer:
    """Takes the noise out of sound while it comes; made by ``Enhancer.live``.

    ``feed`` takes a block and gives what can be known by then; ``finish`` gives the rest and ends it. In all as many
    samples come out as went in, the same for any blocks. What comes out is behind what went in by ``delay`` samples at
    most, which ``docs/live.md`` takes apart. ``share`` of the input is kept and may be changed at any time: with 1 the
    input comes out as it is, with the same delay.
    """

    def __init__(
        self,
        model: LiveModel,
        sample_rate: float,
        channels: int,
        atten_lim_db: float | None = None,
        bandwidth: str = "full",
        watches: bool = False,
        vad: bool = False,
    ) -> None:
        low, high = RATES
        check_rate(sample_rate)
        if not low <= sample_rate <= high or sample_rate != round(sample_rate):
            raise ValueError(f"live sound has a whole number of samples a second, {low:,} to {high:,}: {sample_rate}")
        self.sample_rate, self.channels = round(sample_rate), channels
        self._model, self._settings = model, (atten_lim_db, bandwidth, {"watches": watches, "vad": vad})
        self.reset()

    def reset(self) -> None:
        """Begin again, as if nothing had been heard."""
        atten_lim_db, bandwidth, chosen = self._settings
        self.chain = Chain(self.channels, self.sample_rate, atten_lim_db, bandwidth, live=True, **chosen)
        self._hops = Hops(self._model, self.channels)
        self._finished = False

    def feed(self, block: np.ndarray) -> np.ndarray:
        """(channels, n), or (n,) for one channel, of any n and any dtype of a call of ``Enhancer`` -> float32
        (channels, m)."""
        self._check_open()
        rows = np.asarray(block)
        size = _PORTION * HOP * self.sample_rate // SAMPLE_RATE
        parts = [rows[..., i : i + size] for i in range(0, max(rows.shape[-1], 1), size)]
        return np.concatenate([self.chain.make(self._hops.feed(self.chain.hear(part))) for part in parts], axis=1)

    def finish(self) -> np.ndarray:
        """What is still owed; nothing can be fed from then on, until ``reset``."""
        self._check_open()
        self._finished = True
        made = self.chain.make(self._hops.feed(self.chain.hear(self.chain.nothing, last=True), last=True))
        return np.concatenate([made, self.chain.finish()], axis=1)

    def copy(self) -> LiveEnhancer:
        """Another one that has heard the same, and goes on by itself."""
        other = copy.copy(self)
        other.chain, other._hops = copy.deepcopy(self.chain), self._hops.copy()
        return other

    @property
    def delay(self) -> int:
        """Samples that the output is behind the input, at the most."""
        return self.chain.delay(2 * HOP - 1)

    @property
    def share(self) -> float:
        return self.chain.blend.share

    @share.setter
    def share(self, value: float) -> None:
        self.chain.blend.share = value

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this live sound has ended; reset it to begin another")
