"""The learning rate of a step, as a share of its peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastenh.train.recipe import ScheduleConfig


def learning_rate_share(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return 0..1 for step number ``step`` (from 0). For "plateau" only the warm-up: the rest depends on the losses."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    total = epochs * steps_per_epoch
    if config.kind == "cosine":
        progress = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.kind == "hold":
        return min(1.0, max(total - step, 0) / max(config.decay_epochs * steps_per_epoch, 1))
    return 1.0


@dataclass(frozen=True)
class Branch:
    """The point at which another run was left, for the learning rate to fall from there to 0."""

    step: int
    learning_rate: float

    def end(self, share: float, steps_per_epoch: int) -> int:
        """The step at which the rate is 0: ``share`` of the steps before the branch, up to the end of an epoch."""
        return math.ceil((1 + share) * self.step / steps_per_epoch) * steps_per_epoch

    def learning_rate_at(self, step: int, end: int) -> float:
        return self.learning_rate * max(end - step, 0) / max(end - self.step, 1)


class Plateau:
    """Counts epochs without progress: for the learning rate ("plateau") and for early stopping.

    Progress is a loss lower than the best by more than 0.01 % of it (the default of torch's ReduceLROnPlateau).
    """

    def __init__(self) -> None:
        self.best = math.inf
        self.idle = 0  # epochs since the best
        self.share = 1.0
        self._since_cut = 0

    def update(self, loss: float, config: ScheduleConfig) -> bool:
        """Take the loss of an epoch; True for a new best."""
        better = loss < self.best - 1e-4 * abs(self.best) if math.isfinite(self.best) else loss < self.best
        if better:
            self.best, self.idle, self._since_cut = loss, 0, 0
            return True
        self.idle += 1
        self._since_cut += 1
        if config.kind == "plateau" and self._since_cut > config.patience:
            self.share *= config.factor
            self._since_cut = 0
        return False

    def state_dict(self) -> dict[str, float]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)
