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
from torch import Tensor, nn
from torch.profiler import record_function

from fastenh.data.feed import Batch, Share, prefetch
from fastenh.devices import pick_precision
from fastenh.errors import ProcessingError
from fastenh.models import checkpoint
from fastenh.models.batch_norm import join_batch_norms
from fastenh.models.frontend import SpectralModel
from fastenh.ops import backend
from fastenh.train.graphs import Gradients, GraphedGradients
from fastenh.train.journal import Event, Journal
from fastenh.train.losses import EnhancementLoss
from fastenh.train.memory import keep_freed_memory
from fastenh.train.optimisers import make_optimiser
from fastenh.train.ranks import agree, average_gradients, from_first
from fastenh.train.recipe import Recipe, to_values
from fastenh.train.schedule import Branch, Plateau, learning_rate_share
from fastenh.train.setup import average_weights, initial_model, training_summary
from fastenh.train.sources import Sources
from fastenh.train.state import RunError, load_state, save_state
from fastenh.train.validation import validate

_MAX_BAD_STEPS = 10  # in a row
_LOG_STEPS = 20
_SEED_STRIDE = 1_000_003  # a prime: the seeds of the steps of two runs do not meet


class TrainingError(ProcessingError, RuntimeError):
    """Training that cannot go on."""


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
        self.recipe, self.sources, self.folder, self.device = recipe, sources, folder, device
        self.share = share or Share()
        self.journal = Journal(folder, on_event) if self.share.rank == 0 else None
        torch.manual_seed(recipe.data.seed)
        self.model = initial_model(recipe).to(device)
        if self.share.ranks > 1:
            join_batch_norms(self.model)
        self.loss = EnhancementLoss(recipe.loss, self.model.frontend.hop).to(device)
        self.optimiser = make_optimiser(self.model, recipe.optimiser)
        self.ema = average_weights(self.model, recipe.run.ema)
        self.plateau = Plateau()
        self.step = 0
        self.seconds = 0.0  # of training, over all sessions of the run
        self.bad_steps = 0
        self.left: Branch | None = None  # the run that this one is a branch of
        self.autocast_dtype = pick_precision(recipe.run.precision, device)
        self._began = time.monotonic()
        self._stop = threading.Event()
        if device.type == "cpu":
            keep_freed_memory()
        if recipe.run.compile == "on" or (recipe.run.compile == "auto" and device.type == "cuda"):
            backend.choose(device, training=True)  # the kernels' own test, before anything is traced
            self.model.core.compile()
        self.gradients: Gradients = self._backward
        if recipe.run.graph == "auto" and device.type == "cuda" and self.share.ranks == 1:
            self.gradients = GraphedGradients(self._backward, self.model.parameters())

    # --- state -----------------------------------------------------------------------------------------------------

    def resume(self) -> list[str]:
        """Go on from RUN/state.pt. Returns the keys of the recipe that are not what they were.

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
        self.left = Branch(self.step, self.optimiser.param_groups[0]["lr"])
        self.plateau.best = math.inf
        return changed

    def _take_up(self, folder: Path) -> list[str]:
        state = load_state(folder)
        mine, theirs = to_values(self.recipe), state["recipe"]
        if any(json.dumps(mine[key]) != json.dumps(theirs[key]) for key in ("model", "config")):
            raise RunError(f"{folder}: holds a run of {theirs['model']} with another configuration")
        self.model.core.load_state_dict(state["model"])
        try:
            self.optimiser.load_state_dict(state["optimiser"])
        except (KeyError, ValueError) as error:
            kind = self.recipe.optimiser.kind
            raise RunError(f"{folder}: holds the state of another optimiser than {kind}") from error
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        self.plateau.load_state_dict(state["plateau"])
        self.step, self.seconds, self.bad_steps = state["step"], state["seconds"], state["bad_steps"]
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
        if self.share.rank > 0:
            return
        save_state(
            self.folder,
            {
                "recipe": to_values(self.recipe),
                "model": self.model.core.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "plateau": self.plateau.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "bad_steps": self.bad_steps,
                "left": self.left and asdict(self.left),
            },
        )
        self._checkpoint("last", {})

    def _checkpoint(self, name: str, validation: dict[str, float]) -> None:
        summary = training_summary(self.recipe, self.sources, self.device, self.step, self.seconds, validation)
        path = self.folder / f"{name}{checkpoint.SUFFIX}"
        checkpoint.save(path, self.recipe.model, self.recipe.config, self._judged(), summary, half=False)

    @property
    def total_steps(self) -> int:
        """At the end of the run, those of earlier sessions and of a trunk included."""
        per_epoch = self.sources.feed.steps_per_epoch
        if self.left:
            return self.left.end(self.recipe.schedule.branch_share, per_epoch)
        return per_epoch * self.recipe.run.epochs

    def _learning_rate(self) -> float:
        if self.left:
            return self.left.learning_rate_at(self.step, self.total_steps)
        per_epoch, epochs = self.sources.feed.steps_per_epoch, self.recipe.run.epochs
        share = learning_rate_share(self.recipe.schedule, self.step, per_epoch, epochs)
        return self.recipe.optimiser.learning_rate * share * self.plateau.share

    def _judged(self) -> SpectralModel:
        """The model that is validated and kept: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    # --- the loop --------------------------------------------------------------------------------------------------

    def train(self, max_minutes: float | None = None) -> str:
        """Train to the end of the recipe, or until time, an interrupt (SIGINT, SIGTERM) or early stopping ends it.

        Returns the reason in words. Raises ``TrainingError`` after ten steps in a row without a finite loss.
        """
        deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        per_epoch = self.sources.feed.steps_per_epoch
        self._began = time.monotonic()
        with _interrupts(self._stop), closing(prefetch(self.sources.feed, self.step)) as batches:
            meter = Meter()
            while self.step < self.total_steps:
                meter.add(self.advance(batches), self.recipe.data.batch_size)
                if self.step % _LOG_STEPS == 0:
                    self._emit("step", **self._speed(meter, deadline))
                if self.step % per_epoch == 0 and self._end_epoch():
                    return "early stopping"
                if agree(self._stop.is_set() or time.monotonic() >= deadline, self.device):
                    self._save()
                    return "interrupted" if self._stop.is_set() else "time is up"
        self._save()
        return "finished"

    def advance(self, batches: Iterator[Batch]) -> float:
        """One step on the next batch; returns the loss, NaN where the step was skipped."""
        with record_function("data"):
            batch = next(batches)
        loss = self._train_step(batch)
        self.step += 1
        return loss

    def _train_step(self, batch: Batch) -> float:
        recipe = self.recipe
        # Dropout draws by step and process, not by history: a resumed run draws what it would have drawn.
        number = self.step * self.share.ranks + self.share.rank
        torch.manual_seed(recipe.data.seed * _SEED_STRIDE + number)
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.model.train()
        statistics = [buffer.clone() for buffer in self.model.buffers()]  # of the batch norms: a bad step spoils them
        loss = self.gradients(*(side.to(self.device, non_blocking=True) for side in batch))
        with record_function("optimiser"):
            loss = average_gradients(list(self.model.parameters()), loss)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimiser.clip)
            if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
                for buffer, value in zip(self.model.buffers(), statistics, strict=True):
                    buffer.copy_(value)
                return self._skip_step()
            self.bad_steps = 0
            self.optimiser.step()
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        return loss.item()

    def _backward(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Gradients of the mean loss of the batch, which goes through the model in ``run.accumulate`` parts."""
        self.optimiser.zero_grad()
        parts = self.recipe.run.accumulate
        total = torch.zeros((), device=self.device)
        mixed = self.autocast_dtype != torch.float32
        for part, target in zip(noisy.chunk(parts), clean.chunk(parts), strict=True):
            with record_function("forward"), torch.autocast(self.device.type, self.autocast_dtype, enabled=mixed):
                enhanced, spectrum = self.model.with_spectrum(part)
            with record_function("loss"):
                loss = self.loss(enhanced.float(), target, part, spectrum) / parts
            with record_function("backward"):
                loss.backward()
            total += loss.detach()
        return total

    def _skip_step(self) -> float:
        self.bad_steps += 1
        self._emit("skipped", reason="loss or gradient not finite", in_a_row=self.bad_steps)
        if self.bad_steps >= _MAX_BAD_STEPS:
            raise TrainingError(
                f"no finite loss in {self.bad_steps} steps in a row (step {self.step}): lower "
                "optimiser.learning_rate, or set run.precision=float32; the last good state is kept"
            )
        return math.nan

    def _end_epoch(self) -> bool:
        """Validate, keep the best, save. True where early stopping ends the run."""
        recipe = self.recipe
        values = from_first(self._validate() if self.share.rank == 0 else None)
        best = self.plateau.update(values["loss"], recipe.schedule)
        self._emit("epoch", best=best, **{f"valid_{key}": value for key, value in values.items()})
        if best and self.share.rank == 0:
            self._checkpoint("best", values)
        self._save()
        return bool(recipe.run.early_stop) and self.plateau.idle >= recipe.run.early_stop

    def _validate(self) -> dict[str, float]:
        with record_function("validation"):
            scored = self.recipe.run.scored_pairs
            return validate(self._judged(), self.loss, self.sources.validation, scored, self.device)

    def _speed(self, meter: Meter, deadline: float) -> dict[str, float | None]:
        values = meter.read()
        left = self.total_steps - self.step
        seconds = min(left * meter.seconds_per_step, deadline - time.monotonic())
        return {**values, "x_realtime": values["clips_per_second"] * self.recipe.data.seconds, "time_left": seconds}

    def _emit(self, kind: str, **values: Any) -> None:
        if self.journal is not None:
            epoch = -(-self.step // self.sources.feed.steps_per_epoch)
            rate = self.optimiser.param_groups[0]["lr"]
            self.journal.write({"kind": kind, "step": self.step, "epoch": epoch, "learning_rate": rate, **values})


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

    def read(self) -> dict[str, float | None]:
        now = time.monotonic()
        elapsed = now - self._since
        self.seconds_per_step = elapsed / _LOG_STEPS
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        values = {"loss": loss, "clips_per_second": self._clips / elapsed}
        self._losses, self._clips, self._since = [], 0, now
        return values


@contextmanager
def _interrupts(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the loop to save and end; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
