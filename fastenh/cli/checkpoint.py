"""fastenh checkpoint: describes, converts and averages files of weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from fastenh.cli.errors import one_line
from fastenh.errors import printable
from fastenh.models import checkpoint
from fastenh.models.checkpoint import Checkpoint, CheckpointError
from fastenh.models.foreign import adopt, read_pickled
from fastenh.models.frontend import SpectralModel
from fastenh.models.registry import build, count_parameters, entry, make_config
from fastenh.train.recipe import RecipeError, make_recipe, parse_setting

_output = click.option(
    "-o",
    "--output",
    "target",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The checkpoint to write.",
)
_half = click.option("--half", is_flag=True, help="Store the weights in fp16, as released ones are.")


@click.group("checkpoint")
def command() -> None:
    """Describe, convert and average checkpoints."""


@command.command("info")
@click.argument("files", nargs=-1, required=True)
def info(files: tuple[str, ...]) -> None:
    """Describe FILES: a shipped model, a .safetensors checkpoint, or a .pth that another program pickled."""
    with one_line():
        for file in files:
            click.echo(f"{printable(str(file))}:")
            for key, value in _describe(file).items():
                click.echo(f"  {key}: {printable(str(value))}")


def _describe(file: str) -> dict[str, Any]:
    if _is_ours(file):
        model, found = checkpoint.load(file)
        about = {"training": json.dumps(found.training)}
    else:
        state, others = read_pickled(Path(file))
        name, model = adopt(Path(file), state, None, {})
        found = Checkpoint(name, entry(name).config(), {}, state, "")
        about = {"form": f"pickled by another program; beside the weights: {', '.join(map(str, others)) or 'nothing'}"}
    config = json.dumps(dataclasses.asdict(found.config))
    figures = {"model": found.name, "parameters": f"{count_parameters(model):,}", "configuration": config}
    return {**figures, **about, **({"sha256": found.sha256} if found.sha256 else {})}


@command.command("convert")
@click.argument("source")
@_output
@click.option("--model", "name", help="Name of the model; without it, the shapes decide.")
@click.option(
    "--set", "settings", multiple=True, metavar="key=value", help="Change a key of the configuration; may be repeated."
)
@_half
def convert(source: str, target: Path, name: str | None, settings: tuple[str, ...], half: bool) -> None:
    """Write SOURCE, whatever its form, as a checkpoint of fastenh.

    Pickled state dicts are matched by role, shape and order; judge the result with fastenh evaluate. --set changes
    settings that leave the weights as they are, such as reconstruction=griffin_lim.
    """
    with one_line():
        name, config, model, training = _load(source, name, settings)
        _write(target, name, config, model, training, half)


def _load(source: str, name: str | None, settings: tuple[str, ...]) -> tuple[str, Any, SpectralModel, dict[str, Any]]:
    if not _is_ours(source):
        state, others = read_pickled(Path(source))
        configs = {name: _changed(name, {}, settings)} if name else {}
        name, model = adopt(Path(source), state, name, configs)
        if settings and not configs:
            raise click.UsageError("--set needs --model, unless the source is a checkpoint of fastenh")
        numbers = {
            str(k): float(v) for k, v in others.items() if isinstance(v, int | float) or getattr(v, "shape", 1) == ()
        }
        return name, configs.get(name, entry(name).config()), model, {"converted_from": Path(source).name, **numbers}
    found, described = checkpoint.load(source)
    if name not in (None, described.name):
        raise CheckpointError(f"{source}: is a {described.name}, not a {name}")
    config = _changed(described.name, dataclasses.asdict(described.config), settings)
    try:
        model = build(described.name, config)
        model.load_state_dict(found.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: its weights do not fit the configuration with {', '.join(settings)}"
        ) from error
    return described.name, config, model, described.training


def _changed(name: str, values: dict[str, Any], settings: tuple[str, ...]) -> Any:
    changes = dict(parse_setting(setting) for setting in settings)
    make_config(name, values)  # names the model that does not exist
    values = json.loads(json.dumps(values))
    return make_recipe({"model": name, "config": {**values, **changes}}).config


@command.command("average")
@click.argument("files", nargs=-1, required=True)
@_output
@_half
def average(files: tuple[str, ...], target: Path, half: bool) -> None:
    """Write the mean of the weights of FILES, checkpoints of one model and configuration."""
    with one_line():
        model, found = checkpoint.average(files)
        _write(target, found.name, found.config, model, found.training, half)


def _write(target: Path, name: str, config: Any, model: SpectralModel, training: dict[str, Any], half: bool) -> None:
    if target.suffix != checkpoint.SUFFIX:
        raise click.UsageError(f"-o: a checkpoint ends in {checkpoint.SUFFIX}, unlike {target.name}")
    if target.exists():
        raise RecipeError(f"{target}: is there already and is not replaced")
    checkpoint.save(target, name, config, model, training, half)
    click.echo(f"{printable(str(target))}: {name}, {count_parameters(model):,} parameters")


def _is_ours(source: str) -> bool:
    return not Path(source).exists() or Path(source).suffix == checkpoint.SUFFIX
