"""CUDA graphs: a batch of windows is one replay instead of a hundred launches from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_OTHERS = 32  # graphs of other lengths at most
_WARM_UPS = 2  # calls before the capture: kernels are compiled, cuFFT plans and tables are made


class GraphedModel:
    """A model on CUDA, one graph for each power of two of windows of ``length`` samples, and of a number of ``grain``
    more or less: the few lengths of recordings that are short and of last windows that are long.

    Batches are filled up with silence to the next power of two, so that few graphs serve all of them. The graphs share
    their memory; the result is a copy. What else there is, recordings of less than 1.5 s, runs as usual.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], length: int, grain: int) -> None:
        self.model, self.length, self.grain = model, length, grain
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}  # by length and windows
        self._pool: Any = None  # the handle of their memory

    def __call__(self, waveforms: Tensor) -> Tensor:
        """(B, L) -> (B, L)."""
        count, length = waveforms.shape
        filled = filled_count(count)
        if (length, filled) not in self._graphs:
            if not self._suits(length):
                return self.model(waveforms)
            self._graphs[length, filled] = self._capture(waveforms.new_zeros(filled, length))
        graph, given, result = self._graphs[length, filled]
        given.copy_(F.pad(waveforms, (0, 0, 0, filled - count)))
        graph.replay()
        return result[:count].clone()

    def _suits(self, length: int) -> bool:
        """Whether windows of that length get a graph."""
        others = sum(other != self.length for other, _ in self._graphs)
        return length == self.length or ((length - self.length) % self.grain == 0 and others < _OTHERS)

    def _capture(self, given: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        stream = torch.cuda.Stream(given.device)
        stream.wait_stream(torch.cuda.current_stream(given.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self.model(given)
        torch.cuda.current_stream(given.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self.model(given)
        self._pool = self._pool or graph.pool()
        return graph, given, result


def filled_count(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
