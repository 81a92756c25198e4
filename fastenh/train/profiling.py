"""Where a training step goes."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from fastenh.train.loop import Trainer

PARTS = ("data", "forward", "loss", "backward", "optimiser")
_WARM_UP = 3  # steps: compilation, allocators, caches


@dataclass(frozen=True)
class StepProfile:
    seconds: float  # a step, without the profiler
    parts: dict[str, float]  # seconds of a step in each of PARTS, and in what is left
    slowest: list[tuple[str, float]]  # operations and their own seconds in a step
    audio_seconds: float  # in the batch of a step, of all devices

    @property
    def x_realtime(self) -> float:
        return self.audio_seconds / self.seconds


def profile_steps(trainer: Trainer, steps: int, trace: Path, operations: int = 12) -> StepProfile:
    """Train a few steps, then ``steps`` timed ones, then as many under the profiler, whose trace is written.

    The data is made in line here, so that its whole cost shows; ``train`` makes it ahead, beside the step.
    """
    batches = map(trainer.sources.feed.batch, itertools.count(trainer.steps))
    for _ in range(_WARM_UP):
        trainer.advance(batches)
    seconds = _timed(trainer, batches, steps)
    cuda = trainer.step.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        profiled = _timed(trainer, batches, steps)
    profiler.export_chrome_trace(str(trace))
    events = profiler.key_averages()

    def total(event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
        return event.device_time_total if cuda else event.cpu_time_total

    parts = {name: sum(total(e) for e in events if e.key == name) / 1e6 / steps for name in PARTS}
    shrink = seconds / profiled  # the profiler's own time is spread over the parts
    parts = {name: value * shrink for name, value in parts.items()}
    parts["rest"] = max(0.0, seconds - sum(parts.values()))
    own = [
        (e.key, (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 / steps * shrink) for e in events
    ]
    slowest = sorted((item for item in own if item[0] not in PARTS), key=lambda item: -item[1])[:operations]
    data = trainer.recipe.data
    return StepProfile(seconds, parts, slowest, data.batch_size * data.seconds)


def _timed(trainer: Trainer, batches: map, steps: int) -> float:
    """Seconds a step; the last one is waited for."""
    began = time.perf_counter()
    for _ in range(steps):
        trainer.advance(batches)
    if trainer.step.device.type == "cuda":
        torch.cuda.synchronize(trainer.step.device)
    return (time.perf_counter() - began) / steps
