"""What a run begins with: model, optimiser, averaged weights, precision; and what its checkpoints say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastenh.models import checkpoint
from fastenh.models.frontend import SpectralModel
from fastenh.models.registry import build
from fastenh.train.recipe import OptimiserConfig, Recipe, to_values
from fastenh.train.sources import Sources
from fastenh.train.state import RunError


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Adam (L2 on all, as the origin) or AdamW (decay on matrices and kernels; not on biases and norms)."""
    options = {"lr": config.learning_rate, "betas": config.betas, "fused": True}
    if config.kind == "adam":
        return torch.optim.Adam(model.parameters(), weight_decay=config.weight_decay, **options)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, **options)


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
    """The exponential average of weights and statistics over steps; nothing for a decay of 0."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def pick_precision(asked: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: bfloat16 where the device computes in it, float32 elsewhere."""
    if asked != "auto":
        return getattr(torch, asked)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32  # emulated bfloat16 is slower than float32
