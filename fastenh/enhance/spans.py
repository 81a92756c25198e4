"""How a recording of any length is cut into windows, and put together again. Pure arithmetic.

Window i starts at i * span and is span + 2 * context long, but for the last one: it takes all that remains where that
is at most half a window more, and is moved back where it is less than a window, so that it ends with the recording
(real sound on both sides of every kept sample, no padding). Between neighbours the output changes over at a boundary
that is ``context`` behind the start of the later one, by a linear fade whose two weights sum to 1: neighbours are
nearly equal there, and equal-power weights would make a bump of 3 dB. A recording of at most a window and a half is one
window, which goes on with its reflection to one of a few lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastenh.errors import UsageError


class SpanError(UsageError, ValueError):
    """Lengths that make no windows."""


@dataclass(frozen=True)
class Spans:
    """Lengths in samples. By a multiple of ``grain`` a last window that follows others is longer than a window.

    Raises ``SpanError`` unless 0 <= fade / 2 <= context and fade <= span.
    """

    span: int
    context: int
    fade: int
    grain: int = 1

    def __post_init__(self) -> None:
        if self.span < 1 or self.context < 0 or self.fade < 0:
            raise SpanError("span must be positive, context and fade not negative")
        if self.fade % 2 or self.fade > 2 * self.context or self.fade > self.span:
            raise SpanError("fade must be even, and no longer than the span or twice the context")

    @property
    def window(self) -> int:
        return self.span + 2 * self.context

    @property
    def longest(self) -> int:
        """The length of the longest last window."""
        return self.window + self.window // 2

    def windows(self, length: int) -> list[tuple[int, int]]:
        """(start, end) of each window of a recording of ``length`` samples."""
        before = -(-max(length - self.longest, 0) // self.span)
        starts = [i * self.span for i in range(before + 1)]
        if before:
            starts[-1] = max(length - self.last(length - starts[-1]), starts[-2])
        ends = [start + self.window for start in starts[:-1]]
        return list(zip(starts, [*ends, length], strict=True)) if length else []

    def last(self, remaining: int) -> int:
        """The length of a last window that suits, where so many samples remain from the start of the next one."""
        return self.window + max(0, -(-(remaining - self.window) // self.grain)) * self.grain

    def reflected(self, window: np.ndarray) -> np.ndarray:
        """(C, L) -> (C, a window and a multiple of the grain more or less), by its reflection.

        A folder has few lengths then: what oneDNN prepares for each takes time and memory. What is shorter than three
        grains stays as it is, since its reflection would be much of what the model hears.
        """
        length = window.shape[1]
        more = (self.window - length) % self.grain if length >= 3 * self.grain else 0
        return np.pad(window, ((0, 0), (0, more)), mode="reflect") if more else window


class Cutter:
    """Takes a recording in blocks (C, n) and gives its windows (C, window), in order."""

    def __init__(self, spans: Spans, channels: int) -> None:
        self.spans = spans
        self._held = np.zeros((channels, 0), np.float32)  # from the start of the next window on
        self._start = 0  # of the next window
        self._tail = self._held  # what lies before: the last window may reach back into it

    def feed(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """The windows that are complete and sure not to be the last."""
        self._held = np.concatenate([self._held, block], axis=1)
        span, window = self.spans.span, self.spans.window
        while self._held.shape[1] > self.spans.longest:
            yield self._held[:, :window]
            self._tail, self._held = self._held[:, :span], self._held[:, span:]
            self._start += span

    def finish(self) -> tuple[int, np.ndarray] | None:
        """(start, samples) of the last window; nothing for a recording of no samples."""
        remaining = self._held.shape[1]
        if self._start == 0:
            return (0, self._held) if remaining else None
        earlier = min(self.spans.last(remaining) - remaining, self._tail.shape[1])
        last = np.concatenate([self._tail[:, self._tail.shape[1] - earlier :], self._held], axis=1)
        return self._start - earlier, last


class Joiner:
    """Takes the enhanced windows in order and gives the enhanced recording in blocks."""

    def __init__(self, spans: Spans) -> None:
        self.spans = spans
        ramp = (np.arange(spans.fade, dtype=np.float32) + 0.5) / max(spans.fade, 1)
        self._rising, self._falling = ramp, 1.0 - ramp
        self._index = 0
        self._fading: np.ndarray | None = None  # the last window's side of the fade

    def feed(self, window: np.ndarray, start: int | None = None) -> np.ndarray:
        """The finished samples that window number ``index`` brings; ``start`` is given for the last window alone."""
        spans, half = self.spans, self.spans.fade // 2
        begin = self._index * spans.span if start is None else start
        boundary = self._index * spans.span + spans.context  # where the window takes over from the one before
        if self._fading is None:
            kept = window
        else:
            kept = window[:, boundary - half - begin :].copy()
            kept[:, : spans.fade] = kept[:, : spans.fade] * self._rising + self._fading * self._falling
        self._index += 1
        if start is not None:
            return kept
        end = kept.shape[1] - (spans.context - half)
        self._fading = kept[:, end - spans.fade : end]
        return kept[:, : end - spans.fade]
