"""The causal model hop by hop: equal to its pass over the whole recording, and blind to the future."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastenh.models.dpt_complex import DPTComplexConfig
from fastenh.models.frontend import SpectralModel
from fastenh.models.level import ATTACK, RELEASE, SILENCE_RMS, before_sound, running_level
from fastenh.models.live import HOP, LiveModel, LiveModelError, LiveState
from fastenh.models.registry import build

FRAMES_PER_SECOND = 62.5


def causal_model(history: int = 9) -> SpectralModel:
    torch.manual_seed(1)
    model = build("dpt_complex", DPTComplexConfig(causal=True, history=history, blocks=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def sound(samples: int, batch: int = 1) -> Tensor:
    """Noise that grows, with digital silence at the start and in the middle."""
    torch.manual_seed(samples)
    waveform = torch.randn(batch, samples) * torch.linspace(0.01, 0.5, samples)
    waveform[:, :300] = 0
    waveform[:, samples // 2 : samples // 2 + 2000] = 0
    return waveform


def live(model: LiveModel, waveform: Tensor, portions: list[int]) -> Tensor:
    """``waveform`` through ``model`` in portions of so many hops, over and over, without the delay."""
    padded = torch.nn.functional.pad(waveform, (0, -waveform.shape[1] % HOP + HOP))
    state, given, made = model.start(len(waveform)), 0, []
    while given < padded.shape[1]:
        step = HOP * portions[len(made) % len(portions)]
        samples, state = model(padded[:, given : given + step], state)
        made.append(samples)
        given += step
    return torch.cat(made, 1)[:, HOP : HOP + waveform.shape[1]]


@pytest.mark.parametrize("portions", [[1], [3, 1, 8], [100]])
@pytest.mark.parametrize(("samples", "batch", "history"), [(1, 1, 9), (257, 2, 1), (9000, 2, 9), (20000, 1, 128)])
def test_in_any_portions_it_is_the_whole_pass(samples, batch, history, portions):
    model, waveform = causal_model(history), sound(samples, batch)
    with torch.inference_mode():
        whole, ours = model(waveform), live(LiveModel(model), waveform, portions)
    assert ours.shape == whole.shape
    assert torch.allclose(ours, whole, rtol=0, atol=1e-5 * max(1e-3, float(whole.abs().max())))


def test_the_future_changes_nothing():
    model, waveform = causal_model(), sound(12000)
    changed = waveform.clone()
    changed[:, 8000:] = 5 * torch.randn(1, 4000)
    known = 8000 // HOP * HOP - HOP  # the frame behind it has seen what changed
    with torch.inference_mode():
        before, after = model(waveform), model(changed)
    assert torch.equal(before[:, :known], after[:, :known])
    assert not torch.allclose(before[:, 8000:], after[:, 8000:])


def test_a_copy_of_a_state_goes_on_by_itself():
    model, waveform = LiveModel(causal_model()), sound(20 * HOP)
    with torch.inference_mode():
        _, state = model(waveform[:, : 10 * HOP], model.start())
        kept = state.copy()
        first, _ = model(waveform[:, 10 * HOP :], state)
        for tensor in _tensors(state):
            tensor.fill_(3)
        again, _ = model(waveform[:, 10 * HOP :], kept)
    assert torch.equal(first, again)


def test_a_state_does_not_grow():
    model = LiveModel(causal_model())
    state = model.start()
    shapes = [tensor.shape for tensor in _tensors(state)]
    with torch.inference_mode():
        for hops in (1, 30, 2):
            _, state = model(torch.randn(1, hops * HOP), state)
            assert [tensor.shape for tensor in _tensors(state)] == shapes


@pytest.mark.parametrize("config", [{}, {"causal": True}, {"history": 5}, {"causal": True, "history": 5, "hop": 128}])
def test_a_model_that_looks_ahead_or_has_another_hop_is_refused(config):
    with pytest.raises(LiveModelError):
        LiveModel(build("dpt_complex", DPTComplexConfig(**config)))


def test_level_counts_from_the_first_frame_and_follows_a_rise():
    power = torch.full((1, 400), 4.0)
    power[:, 200:] = 400.0
    level, _ = running_level(power, before_sound(1), FRAMES_PER_SECOND)
    assert torch.allclose(level[:, :200], torch.tensor(2.0))
    risen = level[0, 200 + round(ATTACK * FRAMES_PER_SECOND)] ** 2
    assert 0.6 * 400 < risen < 0.75 * 400  # 1 - 1/e of the way, after one time constant


def test_level_is_held_in_a_pause():
    power = torch.cat([torch.ones(1, 2000), torch.full((1, 62), 1e-6)], 1)  # a second of pause
    level, _ = running_level(power, before_sound(1), FRAMES_PER_SECOND)
    assert math.isclose(float(level[0, -1]), math.exp(-62 / FRAMES_PER_SECOND / RELEASE / 2), rel_tol=1e-3)


def test_level_of_silence_is_the_floor():
    level, _ = running_level(torch.zeros(2, 3), before_sound(2), FRAMES_PER_SECOND)
    assert torch.allclose(level, torch.full((2, 3), SILENCE_RMS), rtol=1e-5)


def test_level_does_not_depend_on_portions():
    power = torch.rand(3, 1500)
    whole, state = running_level(power, before_sound(3), FRAMES_PER_SECOND)
    parts, following = [], before_sound(3)
    for part in power.split([1, 700, 2, 797], 1):
        level, following = running_level(part, following, FRAMES_PER_SECOND)
        parts.append(level)
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=1e-5, atol=0)
    assert torch.allclose(state, following, rtol=1e-5)


def test_gradients_pass_through_the_level():
    model = causal_model().train()
    waveform = sound(4000).requires_grad_()
    enhanced, spectrum = model.with_spectrum(waveform)
    (enhanced.square().sum() + spectrum.abs().sum()).backward()
    assert waveform.grad is not None
    assert torch.isfinite(waveform.grad).all()


def _tensors(state: LiveState) -> list[Tensor]:
    values = [value if isinstance(value, tuple) else (value,) for value in vars(state).values()]
    return [tensor for group in values for tensor in group]
