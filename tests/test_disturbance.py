"""The differentiable disturbance against PESQ itself."""

import numpy as np
import pytest
import torch
from conftest import SAMPLES, noise, voice

from fastenh.audio import files
from fastenh.train.disturbance import Disturbance

CLIPS = ["english-pink.flac", "german-traffic.flac", "english-babble.flac"]


def disturbance(estimate, clean):
    sides = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32))[None] for side in (estimate, clean))
    return Disturbance()(*sides).item()


def score(disturbed):
    """The opinion that PESQ expects: ITU-T P.862.2."""
    return 0.999 + 4 / (1 + np.exp(-1.3669 * (4.5 - disturbed) + 3.8224))


@pytest.mark.parametrize("name", CLIPS)
def test_scores_are_those_of_pesq(name):
    pesq = pytest.importorskip("pesq")
    clean, noisy = (files.read_mono(SAMPLES / folder / name, 16_000) for folder in ("clean", ""))
    for share in (1.0, 0.3, 0.1, 0.03):  # of the noise
        mixed = clean + share * (noisy - clean)
        assert score(disturbance(mixed, clean)) == pytest.approx(pesq.pesq(16_000, clean, mixed, "wb"), abs=0.2)


def test_level_and_colour_disturb_little_and_what_is_added_more_than_what_is_missing():
    clean = voice(48_000)
    assert disturbance(clean, clean) < 1e-3
    assert disturbance(30 * clean, 0.1 * clean) < 1e-3
    spectrum = np.fft.rfft(clean)
    tilted = np.fft.irfft(spectrum * np.linspace(1, 0.3, len(spectrum)), len(clean))
    assert disturbance(tilted, clean) < 0.3 * disturbance(clean + noise(len(clean), scale=0.002), clean)
    time = np.arange(len(clean)) / 16_000
    beeps = clean + 0.01 * np.sin(2 * np.pi * 3000 * time) * (time % 0.4 < 0.2)
    assert disturbance(clean, beeps) < 0.7 * disturbance(beeps, clean)


@pytest.mark.parametrize("length", [1, 100, 511, 512, 3000, 5120])
def test_short_clips_have_finite_gradients(length):
    clean = torch.from_numpy(voice(length))[None]
    estimate = (clean + torch.from_numpy(noise(length))).requires_grad_()
    (gradient,) = torch.autograd.grad(Disturbance()(estimate, clean).sum(), estimate)
    assert torch.isfinite(gradient).all()


def test_its_gradient_leads_to_less_of_it():
    clean = torch.from_numpy(voice(32_000))[None]
    estimate = clean + torch.from_numpy(noise(32_000))
    measure = Disturbance()
    values = []
    for _ in range(5):
        estimate.requires_grad_()
        value = measure(estimate, clean)
        (gradient,) = torch.autograd.grad(value.sum(), estimate)
        estimate = (estimate - 0.05 * estimate.norm() * gradient / gradient.norm()).detach()
        values.append(value.item())
    assert values == sorted(values, reverse=True)
