"""fastenh models: lists the models that can be trained and run."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from fastenh.models import checkpoint
from fastenh.models.registry import MODELS, build, count_parameters, operations_per_second


@click.command("models")
def command() -> None:
    """List the models with their parameters and the operations that a second of audio takes (counted)."""
    shipped: dict[str, list[str]] = {}  # of one model there may be several weights, each under a name of its own
    for label, path in checkpoint.shipped_models().items():
        shipped.setdefault(checkpoint.read(path).name, []).append(label)
    table = Table(caption="GFLOP/s: floating-point operations for one second of audio, counted; a multiply-add is two")
    table.add_column("name")
    table.add_column("parameters", justify="right")
    table.add_column("GFLOP/s", justify="right")
    table.add_column("weights")
    table.add_column("what it is")
    for name, entry in MODELS.items():
        parameters, operations = count_parameters(build(name)), operations_per_second(name)
        others = [label for label in shipped.get(name, []) if label != name]
        weights = ", ".join(["shipped" if name in shipped else "train it", *others])
        table.add_row(name, f"{parameters:,}", f"{operations / 1e9:.1f}", weights, entry.description)
    Console().print(table)
