"""A training step as two CUDA graphs: two launches instead of two thousand, for which a GPU would wait."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger("fastenh")
_WARM_UP = 3  # calls that compile and tune, before the capture


class Optimiser(Protocol):
    @property
    def param_groups(self) -> list[dict[str, Any]]: ...  # other ones after a state was loaded


class GraphedStep:
    """``differentiate(noisy, clean)`` and ``update()``, replayed.

    The first drops the gradients of ``parameters``, leaves new ones and returns what it found; the second moves the
    parameters by them, with the learning rate that ``optimiser`` has in its groups. Both are captured at the fourth
    batch; batches of another shape run as they are. What a graph writes stays where it is: results and gradients are
    good until the next call. Where something cannot be captured, one line of the log says so and it runs.
    """

    def __init__(
        self,
        differentiate: Callable[[Tensor, Tensor], Tensor],
        update: Callable[[], None],
        parameters: Iterable[nn.Parameter],
        optimiser: Optimiser,
    ) -> None:
        self._differentiate, self._update = differentiate, update
        self._parameters, self._optimiser = list(parameters), optimiser
        self._calls, self._replays = 0, False
        self._first: torch.cuda.CUDAGraph | None = None
        self._second: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()

    def differentiate(self, noisy: Tensor, clean: Tensor) -> Tensor:
        self._calls += 1
        if self._calls == _WARM_UP + 1:
            self._capture(noisy, clean)
        graph = self._first
        self._replays = graph is not None and noisy.shape == self._inputs[0].shape
        if graph is None or not self._replays:
            return self._differentiate(noisy, clean)
        for static, given in zip(self._inputs, (noisy, clean), strict=True):
            static.copy_(given)
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad
        graph.replay()
        return self._found

    def update(self) -> None:
        """Update by the gradients of the last call of ``differentiate``."""
        if not self._replays or self._second is None:
            self._update()
            return
        self._rate.fill_(self._optimiser.param_groups[0]["lr"])
        self._second.replay()

    def _capture(self, noisy: Tensor, clean: Tensor) -> None:
        buffers = noisy.clone(), clean.clone()
        self._rate = torch.zeros((), device=noisy.device)
        with _said("gradients"):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # once more, on this stream: libraries set up workspaces; norms count it twice
                self._differentiate(*buffers)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: the thread that draws batches may go on allocating meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._found = self._differentiate(*buffers)
            self._grads = [parameter.grad for parameter in self._parameters]
            self._first, self._inputs = graph, buffers
        if self._first is None:
            return
        with _said("the optimiser"), _rate_on_device(self._optimiser.param_groups, self._rate):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._update()
            self._second = graph


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        log.warning("training without a CUDA graph of %s: %s", what, str(error).splitlines()[0])


@contextmanager
def _rate_on_device(groups: list[dict[str, Any]], rate: Tensor) -> Iterator[None]:
    """A learning rate that is a number would stay in the graph as it is at the capture."""
    before = [dict(group) for group in groups]
    for group in groups:
        group.update({key: value for key, value in (("lr", rate), ("capturable", True)) if key in group})
    try:
        yield
    finally:
        for group, values in zip(groups, before, strict=True):
            group.update({key: values[key] for key in ("lr", "capturable") if key in values})
