"""Enhancement of waveforms: the Python interface."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fastenh.audio.files import MAX_CHANNELS
from fastenh.audio.resampling import Resampler
from fastenh.enhance.blend import Blend
from fastenh.enhance.graphs import GraphedModel
from fastenh.enhance.spans import Cutter, Joiner, Spans
from fastenh.models import checkpoint
from fastenh.models.frontend import SAMPLE_RATE, SpectralModel

Waveform = TypeVar("Waveform", np.ndarray, Tensor)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_AUDIBLE = 1e-6  # mean square: -60 dBFS
_LOST = 1e-12  # of the energy: no noise suppression takes 120 dB off a whole recording


class EnhancementError(RuntimeError):
    """The model gave something that is no sound, or silence for sound."""


class DeviceError(ValueError):
    """A device or a number format that is not to be had here."""


class Enhancer:
    """Takes the noise out of waveforms of any length, rate and channel count.

    Long recordings run in windows of ``span_seconds`` with ``context_seconds`` more on either side (``spans.py``),
    ``batch_size`` windows at a time (1 on the CPU and 16 elsewhere, unless given). Each channel is enhanced on its own.
    """

    def __init__(
        self,
        model: SpectralModel,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        *,
        span_seconds: float = 4.0,
        context_seconds: float = 0.5,
        batch_size: int | None = None,
        identity: str = "",
    ) -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.identity = identity  # of the weights
        self.model = self._compute = model.to(self.device).eval()
        if isinstance(model, SpectralModel):  # other modules run as they are
            self._compute = model.folded(self.dtype)
        # one window at a time stays in the caches of a CPU: 1.3 times as fast there as four
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 16)
        span, context = round(span_seconds * SAMPLE_RATE), round(context_seconds * SAMPLE_RATE)
        self.spans = Spans(span, context, fade=min(800, span, 2 * context) // 2 * 2)  # 50 ms
        if isinstance(model, SpectralModel) and self.device.type == "cuda":
            self._compute = GraphedModel(self._compute, self.spans.window)

    @classmethod
    def from_pretrained(
        cls, source: str | Path = "dpt", device: str | torch.device = "auto", dtype: str = "auto"
    ) -> Enhancer:
        """With the weights of a shipped model, by name, or of a checkpoint file. Raises ``CheckpointError``."""
        model, read = checkpoint.load(source)
        return cls(model, device, dtype, identity=read.sha256)

    def __call__(self, waveform: Waveform, sample_rate: int, atten_lim_db: float | None = None) -> Waveform:
        """(L,) or (C, L) at ``sample_rate`` -> the same shape, rate, level and kind (NumPy or torch).

        NaN and infinite samples count as silence. The model works at 16 kHz: what lies above 8 kHz is taken out with
        the noise. ``atten_lim_db`` keeps a share of the input, so that nothing is turned down by more than that.
        Raises ``ValueError`` for other shapes and ``EnhancementError`` for a model that gives non-finite samples,
        or silence for sound where no ``atten_lim_db`` keeps some of it.
        """
        samples = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else np.asarray(waveform)
        if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[0] <= MAX_CHANNELS):
            raise ValueError(f"a waveform is (samples,) or (channels, samples), not {samples.shape}")
        if sample_rate <= 0:
            raise ValueError(f"sample_rate must be positive, not {sample_rate}")
        noisy = np.atleast_2d(samples.astype(np.float32))
        blocks = self.stream([noisy], noisy.shape[0], sample_rate, atten_lim_db)
        enhanced = np.concatenate([noisy[:, :0], *blocks], axis=1).reshape(samples.shape)
        if isinstance(waveform, Tensor):
            return torch.from_numpy(enhanced).to(waveform.device, waveform.dtype)
        return enhanced

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        channels: int,
        sample_rate: int = SAMPLE_RATE,
        atten_lim_db: float | None = None,
    ) -> Iterator[np.ndarray]:
        """Enhances a recording that comes in blocks (channels, n): yields blocks, in all as many samples.

        Holds no more than a batch of windows, however long the recording. Otherwise as ``__call__``.
        """
        blend = Blend(channels, 0.0 if atten_lim_db is None else 10.0 ** (-abs(atten_lim_db) / 20.0))
        down, up = Resampler(sample_rate, SAMPLE_RATE, channels), Resampler(SAMPLE_RATE, sample_rate, channels)
        nothing = np.zeros((channels, 0), np.float32)
        values, heard, kept = 0, 0.0, 0.0  # what the model gets and gives: samples and energies

        def at_16_khz() -> Iterator[np.ndarray]:
            nonlocal values, heard
            for block, last in itertools.chain(((blend.take(b), False) for b in blocks), [(nothing, True)]):
                low = down.feed(block, last)
                values, heard = values + low.size, heard + _energy(low)
                yield low

        for enhanced in self._windows(at_16_khz(), channels):
            kept += _energy(enhanced)
            yield blend.give(up.feed(enhanced))
        if not blend.share and heard > _AUDIBLE * values and kept < _LOST * heard:
            raise EnhancementError("the model made silence of it; its weights may be damaged")
        yield blend.give(up.feed(nothing, last=True), last=True)

    def _windows(self, blocks: Iterable[np.ndarray], channels: int) -> Iterator[np.ndarray]:
        """At 16 kHz. The result does not depend on how the recording is cut into blocks."""
        cutter, joiner = Cutter(self.spans, channels), Joiner(self.spans)
        waiting: list[np.ndarray] = []
        for block in blocks:
            for window in cutter.feed(block):
                waiting.append(window)
                if len(waiting) == self.batch_size:
                    yield from map(joiner.feed, self._run(waiting))
                    waiting = []
        last = cutter.finish()
        if last is not None:
            start, window = last
            *others, final = self._run([*waiting, window])
            yield from map(joiner.feed, others)
            yield joiner.feed(final, start)

    def _run(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        batch = torch.from_numpy(np.stack(windows)).to(self.device)  # (windows, channels, samples)
        with torch.inference_mode(), self._autocast():
            enhanced = self._compute(batch.flatten(0, 1)).float().view(batch.shape)
        if not torch.isfinite(enhanced).all():
            raise EnhancementError("the model gave NaN or infinite samples; its weights may be damaged")
        return list(enhanced.cpu().numpy())

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=False)  # a graph must hold its own casts


def _energy(block: np.ndarray) -> float:
    return float(np.square(block, dtype=np.float64).sum())


def pick_device(device: str | torch.device) -> torch.device:
    """``auto`` is CUDA where there is one. Raises ``DeviceError`` for a device that is not here."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere. Raises ``DeviceError`` for another name."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if dtype not in DTYPES:
        raise DeviceError(f"dtype must be auto, {', '.join(DTYPES)}, not {dtype!r}")
    return DTYPES[dtype]
