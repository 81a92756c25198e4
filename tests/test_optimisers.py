"""What an optimiser does to which weights."""

import pytest
import torch
from torch import nn

from fastenh.train.optimisers import make_optimiser
from fastenh.train.recipe import OptimiserConfig


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_reaches_each_matrix_once_and_biases_never(kind):
    """Without a gradient, decay is all that happens."""
    model = nn.Sequential(nn.Conv1d(2, 3, 5), nn.Linear(4, 6), nn.LayerNorm(6))
    optimiser = make_optimiser(model, OptimiserConfig(kind=kind, learning_rate=0.5, weight_decay=0.04))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        share = 1 - 0.5 * 0.04 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), share * before[name], msg=name)
