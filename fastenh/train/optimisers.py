"""The optimisers of the recipes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

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


class StackedMuon(torch.optim.Muon):
    """``torch.optim.Muon``, the matrices of one shape made orthogonal together: a model of narrow layers has dozens of
    small ones, and each by itself takes thirty launches that a GPU waits for."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for (rows, columns), parameters in shapes.items():
                self._move(group, parameters, 0.2 * max(rows, columns) ** 0.5)

    def _move(self, group: dict[str, Any], parameters: list[nn.Parameter], scale: float) -> None:
        """scale: of an orthogonal matrix of their shape, for the RMS of AdamW's updates."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        updates = orthogonalised(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(parameters, list(updates.float() * (group["lr"] * scale)))


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Nearly the nearest orthogonal matrices, in bfloat16 (N, R, C): the Newton-Schulz iteration of Muon (Jordan et al.
    2024), as ``torch.optim.Muon`` does it for one matrix."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
                StackedMuon(
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
