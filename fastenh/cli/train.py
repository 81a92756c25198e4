"""fastenh train: a recipe, data, a run folder."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from fastenh.cli.errors import one_line
from fastenh.cli.terminal import Terminal
from fastenh.devices import pick_device
from fastenh.evaluate.metrics import DIGITS, LABELS
from fastenh.models.registry import count_parameters
from fastenh.train.journal import Event
from fastenh.train.loop import Trainer
from fastenh.train.ranks import from_first, joined
from fastenh.train.recipe import load_recipe, shipped_recipes
from fastenh.train.sources import open_sources
from fastenh.train.state import claim, holds_run


@click.command("train", epilog=f"Shipped recipes: {', '.join(shipped_recipes())}.")
@click.argument("recipe_name", metavar="RECIPE")
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--clean", multiple=True, help="Folder of clean speech; may be repeated.")
@click.option("--noise", multiple=True, help="Folder of noise to mix with the clean speech; may be repeated.")
@click.option("--rir", multiple=True, help="Folder of room impulse responses; may be repeated.")
@click.option(
    "--noisy", help="Folder of noisy recordings with the same names as those of --clean (instead of --noise)."
)
@click.option(
    "--valid-noisy", help="Folder of noisy recordings to validate on; without it, some of the data is held out."
)
@click.option("--valid-clean", help="Folder of the clean partners of --valid-noisy.")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Change a key of the recipe; may be repeated.")
@click.option("--resume", is_flag=True, help="Resume the run in the folder.")
@click.option(
    "--resume-or-start",
    is_flag=True,
    help="Resume the run in the folder, or start it where there is none (for processes that torchrun restarts).",
)
@click.option(
    "--branch",
    "trunk",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Start from the current state of RUN and let the learning rate fall to 0; RUN is not changed.",
)
@click.option("--max-minutes", type=click.FloatRange(min=0), help="Save and stop after this many minutes.")
@click.option("--device", default="auto", show_default=True, help="Device to train on: auto, cpu, cuda ...")
@click.option("-q", "--quiet", is_flag=True, help="Print one line per epoch.")
def command(
    recipe_name: str,
    folder: Path,
    settings: tuple[str, ...],
    resume: bool,
    resume_or_start: bool,
    trunk: Path | None,
    max_minutes: float | None,
    device: str,
    quiet: bool,
    **data: Any,
) -> None:
    """Train with RECIPE, the name of a shipped one or a TOML file; checkpoints and log.jsonl go to the run's folder.

    The best checkpoint is RUN/best.safetensors: fastenh enhance --model RUN/best.safetensors. On several devices:
    torchrun --nproc-per-node 2 -m fastenh train ... (the batches are the same on any number of them).
    """
    with one_line(), joined(pick_device(device)) as (share, target):
        first = share.rank == 0
        console = Terminal(quiet=not first)
        given = [f"data.{key}={json.dumps(value)}" for key, value in data.items() if value]
        recipe = load_recipe(recipe_name, [*given, *settings])
        if resume_or_start:
            resume = from_first(holds_run(folder) if first else None)
        if first:
            claim(folder, resume)
        sources = open_sources(recipe, target, share)
        for warning in sources.warnings:
            console.print(f"warning: {warning}")
        trainer = Trainer(recipe, sources, folder, target, lambda event: _show(console, event, quiet), share)
        changed = trainer.resume() if resume else trainer.branch(trunk) if trunk else []
        if changed:
            console.print(f"changed since the run began: {', '.join(changed)}")
        console.print(_opening(trainer, recipe.model, sources.description))
        reason = trainer.train(max_minutes)
        console.print(f"{reason} at step {trainer.steps}; {folder} holds the checkpoints")


def _opening(trainer: Trainer, name: str, data: str) -> str:
    step = trainer.step
    precision = str(step.autocast_dtype).removeprefix("torch.")
    start = f", from step {trainer.steps}" if trainer.steps else ""
    ranks = f"{step.share.ranks} x " if step.share.ranks > 1 else ""
    parameters = f"{count_parameters(step.model):,} parameters"
    return f"{name}, {parameters}; {data}; {ranks}{step.device.type}, {precision}; {trainer.total_steps} steps{start}"


def _show(console: Terminal, event: Event, quiet: bool) -> None:
    where = f"epoch {event['epoch']} step {event['step']}"
    if event["kind"] == "epoch":
        values = {key.removeprefix("valid_"): v for key, v in event.items() if key.startswith("valid_")}
        parts = [f"{LABELS[m]} {values[m]:.{DIGITS[m]}f}" for m in LABELS if m in values]
        best = ", best so far" if event["best"] else ""
        console.print(", ".join([f"{where}: validation loss {values['loss']:.4f}", *parts]) + best)
    elif event["kind"] == "skipped":
        console.print(f"{where}: skipped, {event['reason']} ({event['in_a_row']} in a row)")
    elif not quiet:
        loss = "none" if event["loss"] is None else f"{event['loss']:.4f}"
        finish = datetime.now().astimezone() + timedelta(seconds=event["time_left"])
        left = timedelta(seconds=round(event["time_left"]))
        speed = f"{event['x_realtime']:.1f} x real time, {left} left (until {finish:%a %H:%M})"
        console.print(f"{where}: loss {loss}, lr {event['learning_rate']:.2e}, {speed}")
