"""A causal model for tests: small, with random weights that let sound through."""

from __future__ import annotations

from pathlib import Path

import torch

from fastenh.models import checkpoint
from fastenh.models.dpt_complex import DPTComplexConfig
from fastenh.models.frontend import SpectralModel
from fastenh.models.registry import build

TINY = DPTComplexConfig(channels=16, conv_channels=8, bands=16, feed_forward=32, blocks=1, causal=True, history=9)


def causal_model(config: DPTComplexConfig = TINY) -> SpectralModel:
    torch.manual_seed(1)
    model = build("dpt_complex", config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def causal_checkpoint(folder: Path) -> Path:
    path = folder / "causal.safetensors"
    checkpoint.save(path, "dpt_complex", TINY, causal_model(), {}, half=False)
    return path
