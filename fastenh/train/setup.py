"""What a run begins with: model and averaged weights; and what its checkpoints say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fastenh.models import checkpoint
from fastenh.models.frontend import SpectralModel
from fastenh.models.registry import build
from fastenh.train.recipe import Recipe, to_values
from fastenh.train.sources import Sources
from fastenh.train.state import RunError


def training_summary(
    recipe: Recipe, sources: Sources, device: torch.device, step: int, seconds: float, validation: dict[str, float]
) -> dict[str, Any]:
    """What a checkpoint says of its training; no paths."""
    values = to_values(recipe)
    del values["model"], values["config"]
    for key in ("clean", "noise", "rir", "noisy", "valid_noisy", "valid_clean"):
        del values["data"][key]
    values["run"]["init"] = Path(recipe.run.init).name
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "recipe": values,
        "data": sources.description,
        "steps": step,
        "hours": round(seconds / 3600, 2),
        "device": name,
        "validation": validation,
    }


def initial_model(recipe: Recipe) -> SpectralModel:
    """Fresh weights, or those of ``run.init``. Raises ``RunError`` where they are of another model."""
    model = build(recipe.model, recipe.config)
    if recipe.run.init:
        start, found = checkpoint.load(recipe.run.init)
        if found.name != recipe.model:
            raise RunError(f"run.init: {recipe.run.init} is a {found.name}, the recipe trains a {recipe.model}")
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise RunError(f"run.init: {recipe.run.init} has another configuration than the recipe") from error
    return model


def average_weights(model: SpectralModel, decay: float) -> AveragedModel | None:
    """The exponential average of weights and statistics over steps; nothing for a decay of 0.

    After n steps the decay is at most (1 + n) / (10 + n): a constant one would remember the random weights of the
    beginning for many times 1 / (1 - decay) steps.
    """
    if not decay:
        return None

    def update(averages: list[Tensor], values: list[Tensor], steps: Tensor) -> None:
        """Of one kind of tensor; counters of steps are copied."""
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - now)
        else:
            torch._foreach_copy_(averages, values)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
