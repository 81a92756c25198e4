"""fastenh plot: pictures of recordings, models, runs and results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastenh.cli.errors import one_line
from fastenh.evaluate.metrics import LABELS, METRICS
from fastenh.models.registry import DEFAULT
from fastenh.plots import inside, pareto, spectrograms, training
from fastenh.plots.figures import check_name

_FILE = click.Path(path_type=Path, dir_okay=False)
_output = click.option(
    "-o", "--output", "picture", required=True, type=_FILE, help="The picture to write, .png or .svg."
)
_model = click.option("--model", default=DEFAULT, show_default=True, help="A shipped model or a checkpoint.")


@click.group("plot")
def command() -> None:
    """Draw a picture (needs matplotlib: pip install 'fastenh[plots]')."""


def _draw(picture: Path, draw: Callable[..., None], *arguments: Any) -> None:
    with one_line():
        check_name(picture)
        draw(*arguments)


@command.command("spectrogram")
@click.argument("recordings", nargs=-1, required=True, type=_FILE, metavar="RECORDING...")
@click.option(
    "--title", "titles", multiple=True, help="Title of each recording, in order.  [default: the name of the file]"
)
@_output
def spectrogram(recordings: tuple[Path, ...], titles: tuple[str, ...], picture: Path) -> None:
    """Draw the spectrogram of each RECORDING, one below the other: noisy, enhanced and clean, for example."""
    if titles and len(titles) != len(recordings):
        raise click.UsageError(f"--title: {len(titles)} of them for {len(recordings)} recordings")
    names = titles or tuple(path.name for path in recordings)
    _draw(picture, spectrograms.draw, recordings, names, picture)


@command.command("mask")
@click.argument("recording", type=_FILE)
@_model
@_output
def mask(recording: Path, model: str, picture: Path) -> None:
    """Draw the gain that a model gives each bin of RECORDING (up to 30 s)."""
    _draw(picture, inside.draw_mask, recording, model, picture)


@command.command("attention")
@click.argument("recording", type=_FILE)
@_model
@click.option(
    "--axis", default="time", show_default=True, type=click.Choice(["time", "frequency"]), help="Axis of the layer."
)
@click.option("--block", default=1, show_default=True, help="Number of the layer along that axis, counted from 1.")
@click.option("--head", type=int, help="Draw only this head, counted from 1.  [default: all of them]")
@click.option(
    "--at", type=int, help="Band (for time) or frame (for frequency), counted from 0.  [default: the middle one]"
)
@_output
def attention(
    recording: Path, model: str, axis: str, block: int, head: int | None, at: int | None, picture: Path
) -> None:
    """Draw what a layer attends to in RECORDING (up to 30 s), as a square of weights for each head."""
    _draw(picture, inside.draw_attention, recording, model, picture, axis, block, head, at)


@command.command("training")
@click.argument("logs", nargs=-1, required=True, type=_FILE, metavar="LOG...")
@_output
def training_(logs: tuple[Path, ...], picture: Path) -> None:
    """Draw the losses and metrics of runs, from the log.jsonl in their folders."""
    _draw(picture, training.draw, logs, picture)


@command.command("pareto")
@click.argument("results", type=_FILE)
@click.option(
    "--rivals", type=_FILE, help="A CSV of other systems, with the columns name, real_time_factor and the metrics."
)
@click.option(
    "--metric", default=METRICS[0], show_default=True, type=click.Choice(list(LABELS)), help="Metric to draw."
)
@_output
def pareto_(results: Path, rivals: Path | None, metric: str, picture: Path) -> None:
    """Draw quality against real-time factor, from the RESULTS of fastenh evaluate --out."""
    _draw(picture, pareto.draw, results, rivals, metric, picture)
