"""Enhancement of waveforms: the Python interface."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastenh.allocator import expect_large_blocks
from fastenh.audio.files import MAX_CHANNELS
from fastenh.audio.levels import from_float, to_float
from fastenh.devices import DeviceError, pick_device, pick_dtype
from fastenh.enhance.chain import Chain, check_rate
from fastenh.enhance.chain import EnhancementError as EnhancementError
from fastenh.enhance.engine import Inline, Pool
from fastenh.enhance.exported import ExportedModel, is_exported
from fastenh.enhance.graphs import GraphedModel
from fastenh.enhance.live import LiveEnhancer
from fastenh.enhance.spans import Cutter, Joiner, SpanError, Spans
from fastenh.models import checkpoint
from fastenh.models.frontend import SAMPLE_RATE, SpectralModel
from fastenh.models.live import LiveModel, LiveModelError
from fastenh.models.registry import DEFAULT

log = logging.getLogger("fastenh")
Waveform = TypeVar("Waveform", np.ndarray, Tensor)

# With these a window is 256 frames: lengths that 32 divides make the softmax of a CPU 1.2 to 1.8 times as fast.
SPAN_SECONDS, CONTEXT_SECONDS = 3.58, 0.25
BANDWIDTHS = "full", "16k"
_LONGEST = 600  # seconds: attention over a window of ten minutes fills 20 GB
_LOOKS_AHEAD = "this model looks ahead and cannot run live; dpt_complex-live can"
_GRAIN = 8192  # samples, 32 frames: the lengths that suit a CPU
_FADE = 6400  # samples, 0.4 s: neighbours disagree, and a slow change is heard less (docs/spans.md)


class Enhancer:
    """Takes the noise out of waveforms of any length, rate and channel count.

    Long recordings run in windows of ``span_seconds`` with ``context_seconds`` more on either side (``spans.py``),
    ``batch_size`` windows at a time (1 on the CPU and 16 elsewhere, unless given). Each channel is enhanced on its own.
    The model works at 16 kHz; of a recording at a higher rate the band above 8 kHz follows what the model does right
    below it (``upper_band.py``), or is removed with ``bandwidth="16k"``. ``vad`` turns down further what is no speech
    (``gate.py``).

    A causal model takes each recording as a stream instead, hop by hop and in float32, since windows would forget what
    came before. ``live``: refuse a model that cannot, with True; windows in any case, with False.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        *,
        span_seconds: float = SPAN_SECONDS,
        context_seconds: float = CONTEXT_SECONDS,
        batch_size: int | None = None,
        bandwidth: str = "full",
        vad: bool = False,
        identity: str = "",
        live: bool | None = None,
    ) -> None:
        if bandwidth not in BANDWIDTHS:
            raise ValueError(f"bandwidth is {' or '.join(BANDWIDTHS)}, not {bandwidth!r}")
        self.bandwidth, self.vad = bandwidth, vad
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.identity = identity  # of the weights
        self.model = model.to(self.device).eval()
        self.live_model = _live_model(self.model, live)
        if self.live_model is not None:
            self.dtype = torch.float32
        self._compute: Callable[[Tensor], Tensor] = self.model
        if isinstance(model, SpectralModel):  # other modules run as they are
            self._compute = model.folded(self.dtype)
        # one window at a time stays in the caches of a CPU: 1.3 times as fast there as four
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 16)
        if self.device.type == "cpu":
            expect_large_blocks()
        if not 0 < span_seconds <= _LONGEST or not 0 <= context_seconds <= _LONGEST:
            raise SpanError(f"a span is up to {_LONGEST} s long, not {span_seconds}, and so is its context")
        span, context = round(span_seconds * SAMPLE_RATE), round(context_seconds * SAMPLE_RATE)
        self.spans = Spans(span, context, fade=min(_FADE, span, 2 * context) // 2 * 2, grain=_GRAIN)
        if isinstance(model, SpectralModel) and self.device.type == "cuda":
            self._compute = GraphedModel(self._compute, self.spans.window, _GRAIN)

    @classmethod
    def from_pretrained(
        cls, source: str | Path = DEFAULT, device: str | torch.device = "auto", dtype: str = "auto", **options: Any
    ) -> Enhancer:
        """Load a shipped model by its name, or a checkpoint file; ``options`` are those of the class.

        A file that ``fastenh export`` wrote runs in onnxruntime, on the CPU and in the numbers it was written in.
        Raises ``CheckpointError``, and ``DeviceError`` for a device or dtype that the model does not take.
        """
        if is_exported(source):
            if str(device) not in ("auto", "cpu") or dtype not in ("auto", "float32"):
                raise DeviceError(f"{source} runs on the CPU as it was exported, not on {device} in {dtype}")
            exported = ExportedModel(Path(source))
            return cls(exported, "cpu", "float32", identity=exported.identity, **options)
        model, read = checkpoint.load(source)
        return cls(model, device, dtype, identity=read.sha256, **options)

    def __call__(self, waveform: Waveform, sample_rate: int, atten_lim_db: float | None = None) -> Waveform:
        """Enhance (L,) or (C, L) at ``sample_rate`` in Hz; shape, rate, level, kind (NumPy or torch) and dtype stay.

        Floating-point samples are in -1..1; int16 and int32 have their own full scale, and are rounded and clipped to
        it again. NaN and infinite samples count as silence. A DC offset is taken out. ``atten_lim_db`` keeps a share of
        the input, so that nothing is turned down by more than that. Raises ``ValueError`` for other shapes, dtypes and
        rates, and ``EnhancementError`` for a model that gives non-finite samples, or silence for sound where no
        ``atten_lim_db`` keeps some of it.
        """
        if isinstance(waveform, Tensor):
            plain = waveform.detach().cpu()
            plain = plain.float() if plain.is_floating_point() else plain  # NumPy has no bfloat16
            enhanced = torch.from_numpy(self(plain.numpy(), sample_rate, atten_lim_db))
            return enhanced.to(waveform.device, waveform.dtype)
        samples = np.asarray(waveform)
        _check_shape(samples)
        noisy = np.atleast_2d(to_float(samples))
        blocks: Iterator[np.ndarray] = self.stream([noisy], noisy.shape[0], sample_rate, atten_lim_db)
        enhanced = np.concatenate([noisy[:, :0], *blocks], axis=1).reshape(samples.shape)
        return from_float(enhanced, samples.dtype)

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        channels: int,
        sample_rate: int = SAMPLE_RATE,
        atten_lim_db: float | None = None,
        engine: Inline | Pool | None = None,
        remarks: list[str] | None = None,
    ) -> Iterator[np.ndarray]:
        """Enhance a recording that comes in blocks (channels, n), or (n,) for one channel, in any dtype of a call.

        Yields float32 blocks (channels, m), as many samples in all. Holds no more than a few batches of windows,
        however long the recording. ``engine``: who runs the model, for several recordings at once; this thread unless
        given. ``remarks``: at the end it gets in words what was done besides, and what the model was not made for.
        Otherwise as ``__call__``.
        """
        check_rate(sample_rate)
        if self.live_model is not None:
            yield from self._live_stream(blocks, channels, sample_rate, atten_lim_db, remarks)
            return
        chain = Chain(channels, sample_rate, atten_lim_db, self.bandwidth, vad=self.vad)
        given = itertools.chain(((block, False) for block in blocks), [(chain.nothing, True)])
        heard = (chain.hear(block, last) for block, last in given)
        for enhanced in self._windows(heard, channels, engine or Inline(self.run, self.batch_size)):
            yield chain.make(enhanced)
        _end(chain, remarks)
        yield chain.finish()

    def _live_stream(
        self,
        blocks: Iterable[np.ndarray],
        channels: int,
        sample_rate: int,
        atten_lim_db: float | None,
        remarks: list[str] | None,
    ) -> Iterator[np.ndarray]:
        live = self.live(sample_rate, channels, atten_lim_db, watches=True)
        for block in blocks:
            yield live.feed(block)
        rest = live.finish()
        _end(live.chain, remarks)
        yield rest

    def live(
        self, sample_rate: float, channels: int = 1, atten_lim_db: float | None = None, *, watches: bool = False
    ) -> LiveEnhancer:
        """For sound that is still being made: an object whose ``feed`` takes blocks of any size and gives blocks.

        ``watches``: it also looks for what the model was not made for, of which ``chain.remarks()`` tells at the end.
        That takes a tenth of a second every 8 s. Raises ``LiveModelError`` for a model that looks ahead, and
        ``ValueError`` for a rate that is not whole, or not from 8 to 192 kHz.
        """
        if self.live_model is None:
            raise LiveModelError(_LOOKS_AHEAD)
        return LiveEnhancer(self.live_model, sample_rate, channels, atten_lim_db, self.bandwidth, watches, self.vad)

    def _windows(self, blocks: Iterable[np.ndarray], channels: int, engine: Inline | Pool) -> Iterator[np.ndarray]:
        """At 16 kHz. The result does not depend on how the recording is cut into blocks."""
        cutter, joiner = Cutter(self.spans, channels), Joiner(self.spans)
        pending: deque[list[Future[np.ndarray]]] = deque()  # a future for each channel
        for block in blocks:
            for window in cutter.feed(block):
                pending.append([engine.submit(channel) for channel in window])
                while len(pending) > engine.ahead:
                    yield joiner.feed(_gather(pending.popleft()))
        last = cutter.finish()
        if last is not None:
            start, window = last
            pending.append([engine.submit(channel) for channel in self.spans.reflected(window)])
            engine.flush()
            while len(pending) > 1:
                yield joiner.feed(_gather(pending.popleft()))
            yield joiner.feed(_gather(pending.popleft())[:, : window.shape[1]], start)

    def run(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        """Run the model on windows (L,) of one length at 16 kHz; where memory runs out, in halves from then on.

        Raises ``EnhancementError`` where it fails on a single window.
        """
        if len(windows) > self.batch_size:
            middle = (len(windows) + 1) // 2
            return self.run(windows[:middle]) + self.run(windows[middle:])
        try:
            return list(self._infer(np.stack(windows)))
        except torch.OutOfMemoryError as error:
            if len(windows) == 1:
                raise EnhancementError("no memory left for one window; take a smaller --span-seconds") from error
        except RuntimeError as error:
            raise EnhancementError(f"the model failed: {str(error).splitlines()[0]}") from error
        self.batch_size = (len(windows) + 1) // 2
        log.warning("out of memory: %d windows at a time from here on", self.batch_size)
        torch.cuda.empty_cache()
        return self.run(windows)

    def _infer(self, windows: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(windows)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode(), self._autocast():
            return self._compute(batch.to(self.device, non_blocking=True)).float().cpu().numpy()

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=False)  # a graph must hold its own casts


def _live_model(model: nn.Module, live: bool | None) -> LiveModel | None:
    """The form of a causal model that enhances hop by hop, unless ``live`` is False; with True it must have one."""
    causal = isinstance(model, SpectralModel) and model.causal
    if live is False or (live is None and not causal):
        return None
    try:
        if not isinstance(model, SpectralModel):
            raise LiveModelError(_LOOKS_AHEAD)
        return LiveModel(model)
    except LiveModelError:
        if live:
            raise
    return None


def _end(chain: Chain, remarks: list[str] | None) -> None:
    """What is to be said at the end of a recording."""
    if chain.is_silenced:
        raise EnhancementError("the model made silence of it; its weights may be damaged")
    if remarks is not None:
        remarks += chain.remarks()


def _gather(channels: list[Future[np.ndarray]]) -> np.ndarray:
    window = np.stack([future.result() for future in channels])
    if not np.isfinite(window).all():
        raise EnhancementError("the model gave NaN or infinite samples; its weights may be damaged")
    return window


def _check_shape(samples: np.ndarray) -> None:
    if samples.ndim == 2 and samples.shape[0] > MAX_CHANNELS >= samples.shape[1] > 0:
        raise ValueError(f"a waveform is (channels, samples); {samples.shape} is the other way round: transpose it")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[0] <= MAX_CHANNELS):
        raise ValueError(f"a waveform is (samples,) or (channels, samples), not {samples.shape}")
