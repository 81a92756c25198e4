"""What an optimiser does to which weights."""

import pytest
import torch
from torch import nn

from fastenh.train.optimisers import StackedMuon, make_optimiser
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


def test_matrices_that_are_stacked_move_as_each_by_itself():
    """Wide, square and tall ones, one without a gradient; the state is that of PyTorch's Muon."""
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 4), (6, 4), (4, 6), (4, 4)]
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"}
    stacked, single = StackedMuon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for mine, its in zip(ours[:-1], theirs[:-1], strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        stacked.step()
        single.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0.1 * 2**-8)  # of an update in bfloat16
    single.load_state_dict(stacked.state_dict())
    assert torch.equal(single.state[theirs[0]]["momentum_buffer"], stacked.state[ours[0]]["momentum_buffer"])
