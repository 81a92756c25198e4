"""Each term of the loss against its formula."""

import numpy as np
import pytest
import torch
from conftest import noise, voice

from fastenh.evaluate.metrics import si_sdr
from fastenh.models.frontend import Frontend
from fastenh.train.losses import (
    EnhancementLoss,
    LossConfig,
    consistency_loss,
    multi_resolution_loss,
    si_sdr_loss,
)

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


def test_gradient_of_si_sdr():
    clean, noisy = (x[:, :50].double() for x in pair())
    clean[0] *= 1e-4  # the smallest number that is added to energies counts here
    assert torch.autograd.gradcheck(lambda x: si_sdr_loss(x, clean), noisy.requires_grad_())


def test_multi_resolution_is_its_formula():
    clean, noisy = pair()
    for row, (c, n) in zip(multi_resolution_loss(noisy, clean), zip(clean, noisy, strict=True), strict=True):
        terms = []
        for size in (256, 512, 1024):
            sides = []
            for x in (c, n):
                frames = np.pad(x.double().numpy(), size // 2)
                frames = np.lib.stride_tricks.sliding_window_view(frames, size)[:: size // 4]
                sides.append(np.sqrt(np.abs(np.fft.rfft(frames * np.hanning(size + 1)[:-1])) ** 2 + 1e-8))
            theirs, ours = sides
            terms.append(
                np.linalg.norm(theirs - ours) / np.linalg.norm(theirs) + np.mean(np.abs(np.log(theirs / ours)))
            )
        assert row.item() == pytest.approx(np.mean(terms), rel=1e-3)
    assert multi_resolution_loss(clean, clean).abs().max() == 0


@pytest.mark.parametrize("hop", [128, 256])
def test_consistency_is_the_distance_to_the_stft_of_the_waveform(hop):
    clean, noisy = pair()
    frontend = Frontend(hop)
    spectrum = frontend.stft(noisy)
    assert consistency_loss(spectrum, frontend.istft(spectrum, noisy.shape[-1]), frontend).max() < 1e-9
    masked = spectrum * torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(0))
    waveform = frontend.istft(masked, noisy.shape[-1])
    expected = (masked - frontend.stft(waveform)).abs().square().mean((1, 2))
    assert (expected > 1e-3).all()
    torch.testing.assert_close(consistency_loss(masked, waveform, frontend), expected)
    scaled = masked * (0.1 / noisy.square().mean(-1).sqrt())[:, None, None]
    for_unit_rms = scaled / 0.1
    loss = EnhancementLoss(LossConfig(**NONE | {"consistency": 2.0}), hop)
    given = loss(waveform, clean, noisy, for_unit_rms)
    gain = (0.1 / noisy.square().mean(-1).sqrt()).square()
    assert given.item() == pytest.approx(2 * (expected * gain).mean().item(), rel=1e-4)


def test_silent_target_and_silent_estimate_have_finite_gradients():
    clean, noisy = pair()
    clean[0] = 0
    loss = EnhancementLoss(LossConfig(log_magnitude=1, multi_resolution=1, disturbance=1))
    for estimate in (torch.zeros_like(noisy), clean.clone(), noisy.clone()):
        estimate.requires_grad_()
        total = loss(estimate, clean, noisy)
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(estimate.grad).all()


@pytest.mark.parametrize("term", ["si_sdr", "multi_resolution"])
def test_a_clip_with_a_silent_target_counts_as_zero(term):
    clean, noisy = pair()
    loss = EnhancementLoss(LossConfig(**NONE | {term: 1.0}))
    alone = loss(noisy[:1], clean[:1], noisy[:1]).item()
    clean[1] = 0
    assert loss(noisy, clean, noisy).item() == pytest.approx(alone / 2, rel=1e-5)


def test_level_changes_nothing():
    clean, noisy = pair()
    loss = EnhancementLoss(LossConfig())
    assert loss(noisy * 0.9, clean, noisy).item() == pytest.approx(
        loss(noisy * 0.09, clean * 0.1, noisy * 0.1).item(), rel=1e-4
    )
