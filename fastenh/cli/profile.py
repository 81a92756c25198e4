"""fastenh profile: shows where the time of a training step goes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from fastenh.cli.errors import one_line
from fastenh.devices import pick_device
from fastenh.errors import printable
from fastenh.train.loop import Trainer
from fastenh.train.profiling import StepProfile, profile_steps
from fastenh.train.recipe import load_recipe
from fastenh.train.sources import open_sources


@click.command("profile")
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--clean", multiple=True, help="The same as in fastenh train.")
@click.option("--noise", multiple=True, help="The same as in fastenh train.")
@click.option("--rir", multiple=True, help="The same as in fastenh train.")
@click.option("--noisy", help="The same as in fastenh train.")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Change a key of the recipe; may be repeated.")
@click.option("--steps", default=10, show_default=True, type=click.IntRange(min=1), help="Number of steps to measure.")
@click.option(
    "-o",
    "--output",
    "trace",
    default="trace.json",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The trace to write.",
)
@click.option("--device", default="auto", show_default=True, help="Device to train on: auto, cpu, cuda ...")
def command(recipe_name: str, settings: tuple[str, ...], steps: int, trace: Path, device: str, **data: Any) -> None:
    """Train a few steps with RECIPE and show where their time goes; only the trace is kept.

    The trace opens in a browser: chrome://tracing or ui.perfetto.dev.
    """
    with one_line(), tempfile.TemporaryDirectory() as folder:
        given = [f"data.{key}={json.dumps(value)}" for key, value in data.items() if value]
        recipe = load_recipe(recipe_name, [*given, *settings])
        target = pick_device(device)
        trainer = Trainer(recipe, open_sources(recipe, target), Path(folder), target)
        found = profile_steps(trainer, steps, trace)
    _print(found, trace)


def _print(found: StepProfile, trace: Path) -> None:
    table = Table()
    for header in ("part of a step", "ms", "share"):
        table.add_column(header, justify="left" if header[0] == "p" else "right")
    for position, rows in enumerate((found.parts.items(), found.slowest)):
        if position:
            table.add_section()
        for name, seconds in rows:
            table.add_row(name, f"{1e3 * seconds:,.2f}", f"{100 * seconds / found.seconds:.1f} %")
    Console(highlight=False).print(table)
    click.echo(
        f"{1e3 * found.seconds:,.1f} ms a step, {found.x_realtime:,.1f} x real time; the trace: {printable(str(trace))}"
    )
