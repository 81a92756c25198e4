"""Weights averaged over the steps of a training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Averages(AveragedModel):
    """The exponential average of weights and statistics over steps; counters are copied.

    After n steps the decay is at most (1 + n) / (10 + n): a constant one would remember the random weights of the
    beginning for many times 1 / (1 - decay) steps. Unlike that of its base class an update waits for nothing on a GPU,
    so that a CUDA graph can hold it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, device=next(model.parameters()).device, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        n = self.n_averaged
        kept = torch.where(n == 0, 0.0, ((1 + n) / (10 + n)).clamp(max=self.decay))
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_sub_(averages, values)
        torch._foreach_mul_(averages, kept)
        torch._foreach_add_(averages, values)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
        n += 1


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
