"""The training loop."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from fastenh.allocator import keep_freed_memory
from fastenh.data.feed import Batch, Share, prefetch
from fastenh.errors import ProcessingError
from fastenh.models import checkpoint
from fastenh.train.journal import Event, Journal
from fastenh.train.ranks import agree, from_first
from fastenh.train.recipe import Recipe, to_values
from fastenh.train.schedule import Branch, Plateau, learning_rate_share
from fastenh.train.sources import Sources
from fastenh.train.state import RunError, load_state, save_state
from fastenh.train.step import Step
from fastenh.train.validation import validate

_MAX_BAD_STEPS = 10  # in a row
_LOG_STEPS = 20


class TrainingError(ProcessingError, RuntimeError):
    """Training that cannot continue."""


class Trainer:
    """One run: a recipe, its data, a folder for its checkpoints and its log.

    RUN/log.jsonl gets every event; RUN/last.safetensors and RUN/best.safetensors are checkpoints for use,
    RUN/state.pt is what ``resume`` goes on from: with the same recipe and data, on the CPU, bit for bit as if the
    run had never stopped. Raises ``RunError`` where the folder holds another model.

    With several processes (``ranks.joined``) each works on its ``share`` of every batch; the first one alone validates
    and writes.
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Sources,
        folder: Path,
        device: torch.device,
        on_event: Callable[[Event], None] = lambda event: None,
        share: Share | None = None,
    ) -> None:
        self.recipe, self.sources, self.folder = recipe, sources, folder
        self.step = Step(recipe, device, share)
        self.journal = Journal(folder, on_event) if self.step.share.rank == 0 else None
        self.plateau = Plateau()
        self.steps = 0
        self.seconds = 0.0  # of training, over all sessions of the run
        self.bad_steps = 0  # in a row, up to now
        self.left: Branch | None = None  # the run that this one is a branch of
        self._began = time.monotonic()
        self._stop = threading.Event()
        if device.type == "cpu":
            keep_freed_memory()

    # --- state -----------------------------------------------------------------------------------------------------

    def resume(self) -> list[str]:
        """Resume from RUN/state.pt. Returns the keys of the recipe that have changed.

        Where data, mixing or loss changed, losses from before say nothing of those to come: the best starts anew.
        Raises ``RunError`` where the state is missing, damaged, or of another model.
        """
        return self._take_up(self.folder)

    def branch(self, trunk: Path) -> list[str]:
        """Leave the run in ``trunk`` where it stands, to end here with a learning rate that falls to 0; ``trunk``
        stays as it is and can go on. As ``resume`` otherwise."""
        changed = self._take_up(trunk)
        if self.left:
            raise RunError(f"{trunk}: a branch itself, its learning rate falls already")
        self.left = Branch(self.steps, self.step.learning_rate)
        self.plateau.best = math.inf
        return changed

    def _take_up(self, folder: Path) -> list[str]:
        state = load_state(folder)
        mine, theirs = to_values(self.recipe), state["recipe"]
        if any(json.dumps(mine[key]) != json.dumps(theirs[key]) for key in ("model", "config")):
            raise RunError(f"{folder}: holds a run of {theirs['model']} with another configuration")
        try:
            self.step.load_state_dict(state)
        except ValueError as error:
            raise RunError(f"{folder}: holds {error}") from error
        self.plateau.load_state_dict(state["plateau"])
        self.steps, self.seconds, self.bad_steps = state["step"], state["seconds"], state["bad_steps"]
        self.left = Branch(**state["left"]) if state.get("left") else None
        sections = [section for section in mine if isinstance(mine[section], dict)]
        keys = [(section, key) for section in sections for key in mine[section]]
        changed = [f"{s}.{k}" for s, k in keys if json.dumps(mine[s][k]) != json.dumps(theirs.get(s, {}).get(k))]
        if any(key.split(".")[0] in ("data", "mixing", "loss") for key in changed):
            self.plateau.best = math.inf
        return changed

    def _save(self) -> None:
        now = time.monotonic()
        self.seconds, self._began = self.seconds + now - self._began, now
        if self.step.share.rank > 0:
            return
        save_state(
            self.folder,
            {
                "recipe": to_values(self.recipe),
                **self.step.state_dict(),
                "plateau": self.plateau.state_dict(),
                "step": self.steps,
                "seconds": self.seconds,
                "bad_steps": self.bad_steps,
                "left": self.left and asdict(self.left),
            },
        )
        self._checkpoint("last", {})

    def _checkpoint(self, name: str, validation: dict[str, float]) -> None:
        device = self.step.device
        summary = {
            "recipe": _without_paths(self.recipe),
            "data": self.sources.description,
            "steps": self.steps,
            "hours": round(self.seconds / 3600, 2),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "validation": validation,
        }
        path = self.folder / f"{name}{checkpoint.SUFFIX}"
        checkpoint.save(path, self.recipe.model, self.recipe.config, self.step.judged, summary, half=False)

    @property
    def total_steps(self) -> int:
        """Number of steps at the end of the run, with those of earlier sessions and of a trunk."""
        per_epoch = self.sources.feed.steps_per_epoch
        if self.left:
            return self.left.end(self.recipe.schedule.branch_share, per_epoch)
        return per_epoch * self.recipe.run.epochs

    def _learning_rate(self) -> float:
        if self.left:
            return self.left.learning_rate_at(self.steps, self.total_steps)
        per_epoch, epochs = self.sources.feed.steps_per_epoch, self.recipe.run.epochs
        share = learning_rate_share(self.recipe.schedule, self.steps, per_epoch, epochs)
        return self.recipe.optimiser.learning_rate * share * self.plateau.share

    # --- the loop --------------------------------------------------------------------------------------------------

    def train(self, max_minutes: float | None = None) -> str:
        """Train to the end of the recipe, or until time, an interrupt (SIGINT, SIGTERM) or early stopping ends it.

        Returns the reason in words. Raises ``TrainingError`` after ten steps in a row without a finite loss.
        """
        deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        per_epoch = self.sources.feed.steps_per_epoch
        self._began = time.monotonic()
        with _interrupts(self._stop), closing(prefetch(self.sources.feed, self.steps)) as batches:
            meter = Meter()
            while self.steps < self.total_steps:
                meter.add(self.advance(batches), self.recipe.data.batch_size)
                if self.steps % _LOG_STEPS == 0:
                    self._emit("step", **self._speed(meter, deadline))
                if self.steps % per_epoch == 0 and self._end_epoch():
                    return "early stopping"
                if agree(self._stop.is_set() or time.monotonic() >= deadline, self.step.device):
                    self._save()
                    return "interrupted" if self._stop.is_set() else "time is up"
        self._save()
        return "finished"

    def advance(self, batches: Iterator[Batch]) -> float:
        """Take one step on the next batch; returns the loss, NaN where the step was skipped."""
        with record_function("data"):
            batch = next(batches)
        loss = self.step(batch, self.steps, self._learning_rate())
        self.bad_steps = 0 if math.isfinite(loss) else self.bad_steps + 1
        if self.bad_steps:
            self._report_bad_step()
        self.steps += 1
        return loss

    def _report_bad_step(self) -> None:
        self._emit("skipped", reason="loss or gradient not finite", in_a_row=self.bad_steps)
        if self.bad_steps >= _MAX_BAD_STEPS:
            raise TrainingError(
                f"no finite loss in {self.bad_steps} steps in a row (step {self.steps}): lower "
                "optimiser.learning_rate, or set run.precision=float32; the last good state is kept"
            )

    def _end_epoch(self) -> bool:
        """Validate, keep the best, save. True where early stopping ends the run."""
        recipe = self.recipe
        values = from_first(self._validate() if self.step.share.rank == 0 else None)
        best = self.plateau.update(values["loss"], recipe.schedule)
        self._emit("epoch", best=best, **{f"valid_{key}": value for key, value in values.items()})
        if best and self.step.share.rank == 0:
            self._checkpoint("best", values)
        self._save()
        return bool(recipe.run.early_stop) and self.plateau.idle >= recipe.run.early_stop

    def _validate(self) -> dict[str, float]:
        with record_function("validation"):
            scored = self.recipe.run.scored_pairs
            return validate(self.step.judged, self.step.loss, self.sources.validation, scored, self.step.device)

    def _speed(self, meter: Meter, deadline: float) -> dict[str, float | None]:
        loss, clips = meter.read()
        left = self.total_steps - self.steps
        seconds = min(left * meter.seconds_per_step, deadline - time.monotonic())
        speed = {"clips_per_second": clips, "x_realtime": clips * self.recipe.data.seconds, "time_left": seconds}
        return {"loss": loss, **speed}

    def _emit(self, kind: str, **values: Any) -> None:
        if self.journal is not None:
            epoch = -(-self.steps // self.sources.feed.steps_per_epoch)
            where = {"step": self.steps, "epoch": epoch, "learning_rate": self.step.learning_rate}
            self.journal.write({"kind": kind, **where, **values})


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe that a checkpoint may tell: those that name no folder of the machine."""
    values = to_values(recipe)
    del values["model"], values["config"]  # the checkpoint's header has them already
    for key in ("clean", "noise", "rir", "noisy", "valid_noisy", "valid_clean"):
        del values["data"][key]
    values["run"]["init"] = Path(recipe.run.init).name
    return values


class Meter:
    """Mean loss and speed since the last reading."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._clips = 0
        self._since = time.monotonic()
        self.seconds_per_step = 0.0

    def add(self, loss: float, clips: int) -> None:
        if math.isfinite(loss):
            self._losses.append(loss)
        self._clips += clips

    def read(self) -> tuple[float | None, float]:
        """The mean loss, None where there was no finite one, and clips a second."""
        now = time.monotonic()
        elapsed = now - self._since
        self.seconds_per_step = elapsed / _LOG_STEPS
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        speed = self._clips / elapsed
        self._losses, self._clips, self._since = [], 0, now
        return loss, speed


@contextmanager
def _interrupts(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the loop to save and end; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
