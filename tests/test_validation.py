"""Losses and metrics between epochs are those of the model in evaluation."""

import numpy as np
import pytest
import torch
from conftest import noise, voice
from torch import nn

from fastenh.evaluate import metrics
from fastenh.train.losses import EnhancementLoss, LossConfig
from fastenh.train.validation import validate

CPU = torch.device("cpu")


class Half(nn.Module):
    """Half of the sound; in training some of it is dropped."""

    def forward(self, waveform):
        return 0.5 * nn.functional.dropout(waveform, 0.5, self.training)


@pytest.fixture
def pairs():
    return [(voice(4000, seed) + noise(4000, seed, 0.01 * (1 + seed)), voice(4000, seed)) for seed in range(5)]


@pytest.mark.parametrize("training", [True, False])
def test_validation(pairs, monkeypatch, training):
    monkeypatch.setattr(metrics, "available", lambda: ("si_sdr",))
    model, loss = Half().train(training), EnhancementLoss(LossConfig())
    values = validate(model, loss, pairs, 2, CPU)
    sides = [[torch.from_numpy(side)[None] for side in pair] for pair in pairs]
    expected = [loss(0.5 * noisy, clean, noisy).item() for noisy, clean in sides]
    assert values["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    scores = [metrics.si_sdr(*pairs[index]) for index in (0, 3)]  # two, evenly spaced
    assert values["si_sdr"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert model.training == training


def test_nothing_is_scored_unless_asked_for(pairs):
    assert list(validate(Half(), EnhancementLoss(LossConfig()), pairs, 0, CPU)) == ["loss"]
