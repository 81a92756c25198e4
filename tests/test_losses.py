"""Each term of the loss against its formula."""

import numpy as np
import pytest
import torch
from conftest import noise, voice

from fastenh.evaluate.metrics import si_sdr
from fastenh.models.frontend import Frontend
from fastenh.train.losses import EnhancementLoss, LossConfig, si_sdr_loss

NONE = {"log_magnitude": 0.0, "compressed_magnitude": 0.0, "compressed_complex": 0.0, "si_sdr": 0.0}


def pair(length=8000):
    clean = torch.from_numpy(np.stack([voice(length, seed) + noise(length, seed, 0.01) for seed in range(2)]))
    return clean, clean + torch.from_numpy(noise(2 * length).reshape(2, length))


def spectra(clean, noisy):
    gain = 0.1 / noisy.square().mean(-1, keepdim=True).sqrt()
    return Frontend().stft(noisy * gain), Frontend().stft(clean * gain)


def value(**terms):
    clean, noisy = pair()
    return EnhancementLoss(LossConfig(**NONE | terms))(noisy, clean, noisy).item()


def test_terms():
    clean, noisy = pair()
    estimate, target = spectra(clean, noisy)
    log = (torch.log1p(estimate.abs()) - torch.log1p(target.abs())).abs().mean().item()
    assert value(log_magnitude=2.0) == pytest.approx(2 * log, rel=1e-4)
    magnitude = (estimate.abs() ** 0.3 - target.abs() ** 0.3).square().mean().item()
    assert value(compressed_magnitude=1.0) == pytest.approx(magnitude, rel=1e-2)
    power = [s / s.abs() * s.abs() ** 0.3 for s in (estimate, target)]
    assert value(compressed_complex=1.0) == pytest.approx((power[0] - power[1]).abs().square().mean().item(), rel=1e-2)
    assert value(log_magnitude=1, si_sdr=1) == pytest.approx(value(log_magnitude=1) + value(si_sdr=1), rel=1e-5)


def test_si_sdr_is_the_metric():
    clean, noisy = (x - x.mean(-1, keepdim=True) for x in pair())
    losses = si_sdr_loss(noisy, clean)
    for loss, n, c in zip(losses, noisy, clean, strict=True):
        assert -10 * loss.item() == pytest.approx(si_sdr(n.numpy(), c.numpy()), abs=0.01)


def test_silent_target_and_silent_estimate_have_finite_gradients():
    clean, noisy = pair()
    clean[0] = 0
    loss = EnhancementLoss(LossConfig())
    for estimate in (torch.zeros_like(noisy), clean.clone(), noisy.clone()):
        estimate.requires_grad_()
        total = loss(estimate, clean, noisy)
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(estimate.grad).all()


def test_level_changes_nothing():
    clean, noisy = pair()
    loss = EnhancementLoss(LossConfig())
    assert loss(noisy * 0.9, clean, noisy).item() == pytest.approx(
        loss(noisy * 0.09, clean * 0.1, noisy * 0.1).item(), rel=1e-4
    )
