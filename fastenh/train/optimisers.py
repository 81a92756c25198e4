"""The optimisers of the recipes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastenh.train.recipe import OptimiserConfig


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer | MuonWithAdamW:
    """Adam (L2 on all, as the origin), AdamW (decay on matrices and kernels; not on biases and norms), or Muon with
    AdamW."""
    if config.kind == "muon":
        return MuonWithAdamW(model, config)
    parameters = list(model.parameters())
    if config.kind == "adam":
        return torch.optim.Adam(parameters, weight_decay=config.weight_decay, **_options(config))
    return _adamw(parameters, config)


def _options(config: OptimiserConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "betas": config.betas, "fused": True}


def _adamw(parameters: list[nn.Parameter], config: OptimiserConfig) -> torch.optim.AdamW:
    kernels, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, **_options(config))


class MuonWithAdamW:
    """Muon for the weights of linear maps, AdamW for everything else, as one optimiser.

    Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") makes the update of a matrix
    orthogonal. ``match_rms_adamw`` scales it to the RMS of AdamW's updates, so that one learning rate serves both
    (Liu et al. 2025, "Muon is scalable for LLM training").
    """

    def __init__(self, model: nn.Module, config: OptimiserConfig) -> None:
        matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        chosen = set(map(id, matrices))
        self._parts: list[torch.optim.Optimizer] = [
            _adamw([p for p in model.parameters() if id(p) not in chosen], config)
        ]
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=config.learning_rate,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, values in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(values)
