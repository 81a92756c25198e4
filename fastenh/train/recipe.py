"""Recipes: TOML files that say what is trained, on what, and how. Every key is checked, by name and by type."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastenh.data.mixing import MixingConfig
from fastenh.errors import UsageError
from fastenh.models.registry import ModelError, entry
from fastenh.train.losses import LossConfig


class RecipeError(UsageError, ValueError):
    """A recipe that is not there or not valid; the message names the key."""


@dataclass(frozen=True)
class DataConfig:
    """Either ``clean`` and ``noise`` (mixed on the fly, with ``rir`` if given), or ``noisy`` and ``clean`` (pairs)."""

    clean: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    rir: tuple[str, ...] = ()
    noisy: str = ""
    valid_noisy: str = ""  # judged on; without them a part of the training data is held out
    valid_clean: str = ""
    seconds: float = 3.0  # of a training crop
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True)
class OptimiserConfig:
    """muon: the weights of linear maps by Muon, everything else by AdamW, at one learning rate and weight decay."""

    kind: Literal["adam", "adamw", "muon"] = "adamw"
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 5.0  # largest norm of the gradient


@dataclass(frozen=True)
class ScheduleConfig:
    """plateau: halved (``factor``) after ``patience`` epochs without progress. cosine: to 0 at the last epoch.
    hold: constant, then linearly to 0 over the last ``decay_epochs``; constant to the end where these are 0.
    A branch of a run (``--branch``) falls linearly to 0 over ``branch_share`` of the steps that the run has made."""

    kind: Literal["plateau", "cosine", "hold"] = "hold"
    warmup_epochs: float = 1.0
    decay_epochs: float = 10.0
    branch_share: float = 0.2
    factor: float = 0.5
    patience: int = 5


@dataclass(frozen=True)
class RunConfig:
    epochs: int = 30
    steps_per_epoch: int = 100  # of mixed data; an epoch of pairs shows each pair once
    early_stop: int = 0  # epochs without progress before the end; 0 for never
    accumulate: int = 1  # parts that a batch passes through the model in: less memory, the same gradient
    ema: float = 0.0  # decay per step of the averaged weights that are validated and kept; 0 for none
    init: str = ""  # a shipped model or a checkpoint to start from
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on CUDA
    graph: Literal["auto", "off"] = "auto"  # of forward and backward pass; auto: on CUDA, one process
    validation_pairs: int = 32  # made or held out, where no valid_noisy is given
    scored_pairs: int = 8  # of them, for PESQ, STOI and SI-SDR


@dataclass(frozen=True)
class Recipe:
    model: str
    config: Any  # of the model
    data: DataConfig = field(default_factory=DataConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)


def shipped_recipes() -> dict[str, Path]:
    folder = Path(str(resources.files("fastenh") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(source: str, settings: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name or a TOML file, with settings "section.key=value" on top. Raises ``RecipeError``."""
    path = shipped_recipes().get(source, Path(source))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(shipped_recipes())
        raise RecipeError(f"no recipe {source!r}: neither a file nor one of {names}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML ({error})") from error
    for setting in settings:
        _apply(values, setting)
    return make_recipe(values)


def make_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values. Raises ``RecipeError`` naming the key that is wrong."""
    model = values.get("model")
    try:
        config = entry(model if isinstance(model, str) else "").config
    except ModelError as error:
        raise RecipeError(f"model: {error}") from error
    sections = {f.name: get_type_hints(Recipe)[f.name] for f in dataclasses.fields(Recipe) if f.name != "model"}
    sections["config"] = config
    parts: dict[str, Any] = {}
    counts = {"data": ("seconds", "batch_size"), "run": ("epochs", "steps_per_epoch", "validation_pairs", "accumulate")}
    for key, value in values.items():
        if key == "model":
            continue
        if key not in sections:
            raise RecipeError(f"{key}: no such section; there are model, {', '.join(sections)}")
        if not isinstance(value, dict):
            raise RecipeError(f"{key}: must be a table, not {value!r}")
        parts[key] = _section(sections[key], value, key)
        for name in counts.get(key, ()):
            if getattr(parts[key], name) <= 0:
                raise RecipeError(f"{key}.{name}: must be more than 0, not {getattr(parts[key], name)}")
    return Recipe(model=model, **{"config": config(), **parts})


def to_values(recipe: Recipe) -> dict[str, Any]:
    """The plain values of a recipe: JSON can hold them, ``make_recipe`` takes them back."""
    return dataclasses.asdict(recipe)


def _apply(values: dict[str, Any], setting: str) -> None:
    name, value = parse_setting(setting)
    *sections, key = name.split(".")
    if len(sections) > 1:
        raise RecipeError(f"--set {setting}: must read section.key=value")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {setting}: {section} is no section")
    table[key] = value


def parse_setting(setting: str) -> tuple[str, Any]:
    """("section.key", value) of "section.key=value", the value as in TOML. Raises ``RecipeError``."""
    name, equals, text = setting.partition("=")
    name = name.strip()
    if not equals or not name or name.endswith("."):
        raise RecipeError(f"--set {setting}: must read section.key=value")
    try:
        return name, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name, text  # a bare word is a string


def _section(cls: type, values: dict[str, Any], name: str) -> Any:
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise RecipeError(f"{name}.{key}: no such key; there are {', '.join(hints)}")
    try:
        return cls(**{key: _convert(hints[key], value, f"{name}.{key}") for key, value in values.items()})
    except ModelError as error:
        raise RecipeError(f"{name}: {error}") from error


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args:
            raise RecipeError(f"{key}: must be one of {', '.join(map(str, args))}, not {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(f"{key}: must be {hint.__name__}, not {value!r}")
    return value


def _convert_tuple(args: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    open_ended = len(args) == 2 and args[1] is Ellipsis
    if open_ended and isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or (not open_ended and len(value) != len(args)):
        count = "a list" if open_ended else f"a list of {len(args)}"
        raise RecipeError(f"{key}: must be {count}, not {value!r}")
    hints = [args[0]] * len(value) if open_ended else args
    return tuple(_convert(hint, item, key) for hint, item in zip(hints, value, strict=True))
