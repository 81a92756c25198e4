"""A training step's forward and backward pass as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

log = logging.getLogger("fastenh")
_WARM_UP = 3  # calls that compile and tune, before the capture

Gradients = Callable[[Tensor, Tensor], Tensor]


class GraphedGradients:
    """``compute(noisy, clean)``, replayed: it drops the parameters' gradients, leaves new ones and returns the loss.

    Captured at the fourth batch; batches of another shape run as they are. What the graph writes stays where it is:
    loss and gradients are good until the next call. Where nothing can be captured, one line of the log says so and
    ``compute`` runs.
    """

    def __init__(self, compute: Gradients, parameters: Iterable[nn.Parameter]) -> None:
        self._compute, self._parameters = compute, list(parameters)
        self._calls, self._graph = 0, None
        self._inputs: tuple[Tensor, ...] = ()

    def __call__(self, noisy: Tensor, clean: Tensor) -> Tensor:
        self._calls += 1
        if self._calls == _WARM_UP + 1:
            self._capture(noisy, clean)
        if self._graph is None or noisy.shape != self._inputs[0].shape:
            return self._compute(noisy, clean)
        for static, given in zip(self._inputs, (noisy, clean), strict=True):
            static.copy_(given)
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad
        self._graph.replay()
        return self._loss

    def _capture(self, noisy: Tensor, clean: Tensor) -> None:
        buffers = noisy.clone(), clean.clone()
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._compute(*buffers)  # once more, on this stream: libraries set up workspaces; norms count it twice
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: the thread that draws batches may go on allocating meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._loss = self._compute(*buffers)
        except RuntimeError as error:
            log.warning("training without a CUDA graph: %s", str(error).splitlines()[0])
            return
        self._grads = [parameter.grad for parameter in self._parameters]
        self._graph, self._inputs = graph, buffers
