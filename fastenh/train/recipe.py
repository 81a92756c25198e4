"""Recipes: TOML files that say what is trained, on what, and how. Every key is checked: its name, type and range."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from fastenh.data.mixing import MixingConfig
from fastenh.data.settings import Count, CountOrNone, Decay, Fraction, Names, Positive, Probability, Weight
from fastenh.errors import UsageError
from fastenh.models.registry import ModelError, entry
from fastenh.train.losses import LossConfig

Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]  # attention over more fills the memory
_DEEP = "brackets within brackets, more than can be read"


class RecipeError(UsageError, ValueError):
    """A recipe that is not there or not valid; the message names the key."""


@dataclass(frozen=True)
class DataConfig:
    """Either ``clean`` and ``noise`` (mixed on the fly, with ``rir`` if given), or ``noisy`` and ``clean`` (pairs)."""

    clean: Names = ()
    noise: Names = ()
    rir: Names = ()
    noisy: str = ""
    valid_noisy: str = ""  # judged on; without them a part of the training data is held out
    valid_clean: str = ""
    seconds: Seconds = 3.0  # of a training crop
    batch_size: Count = 8
    seed: CountOrNone = 0


@dataclass(frozen=True)
class OptimiserConfig:
    """muon: the weights of linear maps by Muon, everything else by AdamW, at one learning rate and weight decay."""

    kind: Literal["adam", "adamw", "muon"] = "adamw"
    learning_rate: Probability = 1.5e-3
    weight_decay: Probability = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    clip: Positive = 5.0  # largest norm of the gradient


@dataclass(frozen=True)
class ScheduleConfig:
    """plateau: halved (``factor``) after ``patience`` epochs without progress. cosine: to 0 at the last epoch.
    hold: constant, then linearly to 0 over the last ``decay_epochs``; constant to the end where these are 0.
    A branch of a run (``--branch``) falls linearly to 0 over ``branch_share`` of the steps that the run has made."""

    kind: Literal["plateau", "cosine", "hold"] = "hold"
    warmup_epochs: Weight = 1.0
    decay_epochs: Weight = 10.0
    branch_share: Positive = 0.2
    factor: Fraction = 0.5
    patience: CountOrNone = 5


@dataclass(frozen=True)
class RunConfig:
    epochs: Count = 30
    steps_per_epoch: Count = 100  # of mixed data; an epoch of pairs shows each pair once
    early_stop: CountOrNone = 0  # epochs without progress before the end; 0 for never
    accumulate: Count = 1  # parts that a batch passes through the model in: less memory, the same gradient
    ema: Decay = 0.0  # decay per step of the averaged weights that are validated and kept; 0 for none
    init: str = ""  # a shipped model or a checkpoint to start from
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on CUDA
    graph: Literal["auto", "off"] = "auto"  # of forward and backward pass; auto: on CUDA, one process
    validation_pairs: Count = 32  # made or held out, where no valid_noisy is given
    scored_pairs: CountOrNone = 8  # of them, for PESQ, STOI and SI-SDR


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
    """Load a shipped recipe or a TOML file, with settings "section.key=value" on top. Raises ``RecipeError``."""
    path = shipped_recipes().get(source, Path(source))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(shipped_recipes())
        raise RecipeError(f"no recipe {source!r}: neither a file nor one of {names}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML ({error})") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: {_DEEP}") from error
    for setting in settings:
        _apply(values, setting)
    return make_recipe(values)


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Make a recipe from plain values. Raises ``RecipeError`` naming all keys that are wrong."""
    named = values.get("model")
    model = named if isinstance(named, str) else ""
    try:
        config = entry(model).config
    except ModelError as error:
        raise RecipeError(f"model: {error}") from error
    sections = {**get_type_hints(Recipe), "config": config}
    del sections["model"]
    parts: dict[str, Any] = {"config": config()}
    errors: list[str] = []
    for name, table in values.items():
        if name == "model":
            continue
        if name not in sections:
            errors.append(f"{name}: no such section; there are model, {', '.join(sections)}")
        elif not isinstance(table, dict):
            errors.append(f"{name}: must be a table, not {reprlib.repr(table)}")
        else:
            parts[name] = _section(sections[name], table, name, errors)
    if not errors:
        errors = _model_errors(parts["config"])
    if errors:
        raise RecipeError("; ".join(errors))
    return Recipe(model=model, **parts)


def to_values(recipe: Recipe) -> dict[str, Any]:
    """Return the plain values of a recipe: JSON can hold them, ``make_recipe`` takes them back."""
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
    """Parse "section.key=value" into ("section.key", value), the value as in TOML. Raises ``RecipeError``."""
    name, equals, text = setting.partition("=")
    name = name.strip()
    if not equals or not name or name.endswith("."):
        raise RecipeError(f"--set {setting}: must read section.key=value")
    try:
        return name, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name, text  # a bare word is a string
    except RecursionError as error:
        raise RecipeError(f"--set {name}: {_DEEP}") from error


def _section(cls: type, values: dict[str, Any], name: str, errors: list[str]) -> Any:
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = [key for key in values if key not in known]
    errors += [f"{name}.{key}: no such key; there are {', '.join(known)}" for key in unknown]
    plain = json.dumps({key: value for key, value in values.items() if key in known}, default=str)
    try:  # as JSON: its strict mode takes a list for a tuple and no truth value for a number
        return TypeAdapter(cls).validate_json(plain, strict=True)
    except ValidationError as error:
        errors += [_words(name, details) for details in error.errors()]
        return None


def _words(section: str, details: Any) -> str:
    """One of pydantic's errors, with the path of its key."""
    path = ".".join([section, *map(str, details["loc"])])
    text = details["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    return f"{path}: {text}, not {reprlib.repr(details['input'])}"


def _model_errors(config: Any) -> list[str]:
    """Numbers of a model's configuration that no network has; its class says the types alone."""
    errors = []
    for key, value in dataclasses.asdict(config).items():
        for number in value if isinstance(value, tuple) else [value]:
            limit = 1 if key == "dropout" else 1_000_000
            if isinstance(number, int | float) and not (math.isfinite(number) and 0 <= number <= limit):
                errors.append(f"config.{key}: must be in 0 to {limit:,}, not {number}")
    return errors
