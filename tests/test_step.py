"""One step of training, without data and without a folder."""

import dataclasses
import io
import math
from itertools import pairwise

import pytest
import torch
from conftest import TINY_DPT
from torch import nn

from fastenh.data.feed import Share
from fastenh.devices import pick_dtype
from fastenh.train.averages import Averages
from fastenh.train.recipe import make_recipe
from fastenh.train.step import Step

CPU = torch.device("cpu")
NORMS = (nn.LayerNorm, nn.BatchNorm2d)


def make_step(share=None, dropout=0.1, data=None, loss=None, optimiser=None, **run):
    """A step of a small model; dicts and keywords are keys of the recipe's sections."""
    recipe = make_recipe(
        {
            "model": "dpt",
            "config": dataclasses.asdict(TINY_DPT) | {"dropout": dropout},
            "data": data or {},
            "loss": loss or {},
            "optimiser": optimiser or {},
            "run": {"precision": "float32"} | run,
        }
    )
    return Step(recipe, CPU, share)


def batch(number=0, clips=2, length=4000):
    generator = torch.Generator().manual_seed(number)
    noisy, clean = torch.randn(2, clips, length, generator=generator)
    return noisy, clean


def through_a_file(state):
    """What ``torch.save`` and a safe ``torch.load`` make of it; no tensor is shared with the original."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(ours, theirs, where="state"):
    """Bit for bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert ours == theirs, where


def gradient_norms(step, scale):
    """The norms of the gradient, times ``scale``, as it is made and as the optimiser sees it."""
    norms = []
    gradients, update = step._backward, step.optimiser.step

    def grads():  # none for a bias before a batch norm, which takes it out again
        return [p.grad for p in step.model.parameters() if p.grad is not None]

    def norm():
        return torch.cat([grad.flatten() for grad in grads()]).norm().item()

    def scaled(noisy, clean):
        loss = gradients(noisy, clean)
        torch._foreach_mul_(grads(), scale)
        norms.append(norm())
        return loss

    step._backward = scaled
    step.optimiser.step = lambda: (norms.append(norm()), update())
    step(batch(), 0, 1e-3)
    return norms


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_a_huge_gradient_is_clipped(kind):
    made, seen = gradient_norms(make_step(optimiser={"kind": kind, "clip": 0.5}), 1e6)
    assert made > 1e3
    assert seen == pytest.approx(0.5, rel=1e-4)


def test_a_small_gradient_is_left_as_it_is():
    made, seen = gradient_norms(make_step(optimiser={"clip": 0.5}), 1e-6)
    assert seen == made > 0


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_leaves_biases_and_norms_alone(kind):
    step = make_step(optimiser={"kind": kind, "weight_decay": 0.1}, ema=0)
    spared = {id(p) for name, p in step.model.named_parameters() if name.endswith("bias")}
    spared |= {id(p) for module in step.model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    for parameter in step.model.parameters():
        nn.init.normal_(parameter)  # a bias of 0 would not shrink in any case
    before = {name: p.detach().clone() for name, p in step.model.named_parameters()}

    def no_gradients(noisy, clean):
        for parameter in step.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return torch.zeros(2)

    step.differentiate = no_gradients
    step(batch(), 0, 0.5)
    for name, parameter in step.model.named_parameters():
        if id(parameter) in spared:
            assert torch.equal(parameter, before[name]), name
        else:
            torch.testing.assert_close(parameter, before[name] * (1 - 0.5 * 0.1), msg=name)


def test_the_learning_rate_is_that_of_the_call_in_every_group():
    step = make_step(optimiser={"kind": "muon"})
    step(batch(), 0, 0.25)
    assert [group["lr"] for group in step.optimiser.param_groups] == [0.25] * 3  # kernels, biases, matrices
    assert step.learning_rate == 0.25
    before = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    step(batch(), 1, 0.0)
    assert_same(dict(step.model.named_parameters()), before)


def test_averages_hold_the_statistics_of_batch_norms_too():
    step = make_step(ema=0.5)
    states = [through_a_file(step.model.state_dict())]
    for number in range(2):
        step(batch(number), number, 1e-3)
        states.append(through_a_file(step.model.state_dict()))
        if number == 0:
            assert_same(step.judged.state_dict(), states[1])  # the average of one
    statistics = [key for key in states[0] if "running" in key]
    assert len(statistics) == 6
    assert not any(torch.equal(a[key], b[key]) for a, b in pairwise(states) for key in statistics)
    decay = 2 / 11  # of the second step; those after the eighth have 0.5
    for key, average in step.judged.state_dict().items():
        if average.is_floating_point():
            expected = decay * states[1][key] + (1 - decay) * states[2][key]
            torch.testing.assert_close(average, expected, msg=key)
        else:
            assert average == 2, key  # batches that a batch norm has seen


def test_averaged_weights_forget_the_first_ones():
    """With a decay of 0.999 alone, nine tenths of the random weights would be left after a hundred steps."""
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(1e6)
        ema = Averages(model, 0.999)
        ema.update_parameters(model)
        for _ in range(100):
            model.weight.fill_(1.0)
            model.running_mean.fill_(3.0)
            model.num_batches_tracked += 1
            ema.update_parameters(model)
    assert ema.module.weight.item() < 100
    assert ema.module.running_mean.item() == pytest.approx(3.0, rel=1e-3)
    assert ema.module.num_batches_tracked == 100


def test_without_averages_the_model_itself_is_judged():
    step = make_step(ema=0)
    assert step.ema is None
    assert step.judged is step.model


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("bad", ["batch", "gradient"])
def test_a_bad_step_leaves_everything_as_it_was(kind, bad):
    """A NaN in the batch, or a finite loss with a gradient that is not."""
    step = make_step(optimiser={"kind": kind}, ema=0.5)
    assert math.isfinite(step(batch(0), 0, 1e-3))
    before = through_a_file(step.state_dict())
    noisy, clean = batch(1)
    if bad == "batch":
        noisy[0, 0] = math.nan
    else:
        step.model.core.head.bias.register_hook(lambda grad: torch.full_like(grad, math.inf))
    assert math.isnan(step((noisy, clean), 1, 1e-3))
    for name, value in step.model.named_buffers():
        assert value.isfinite().all(), name
    assert_same(step.state_dict(), before)


def test_a_step_after_a_bad_one_is_what_it_would_have_been():
    results = []
    for numbers in ((0, 2), (0, 1, 2)):
        step = make_step(ema=0.5)
        for number in numbers:
            noisy, clean = batch(number)
            noisy[0, 0] = math.nan if number == 1 else 0.0
            step((noisy, clean), number, 1e-3)
        results.append(step.state_dict())
    assert_same(*results)


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_steps_go_on_from_a_state_bit_for_bit(kind):
    settings = {"optimiser": {"kind": kind}, "ema": 0.5, "precision": "auto"}
    whole = make_step(**settings)
    for number in range(3):
        whole(batch(number), number, 1e-3)
    state = through_a_file(whole.state_dict())
    assert state.keys() == {"model", "optimiser", "ema"}  # as in the state.pt of every run so far
    resumed = make_step(**settings)
    resumed.load_state_dict(state | {"step": 3, "left": None})
    assert_same(resumed.state_dict(), whole.state_dict())
    torch.rand(7)  # what was drawn in between does not matter
    for number in range(3, 5):
        losses = [step(batch(number), number, 1e-3) for step in (whole, resumed)]
        assert losses[0] == losses[1]
    assert_same(resumed.state_dict(), whole.state_dict())


def test_the_state_of_another_optimiser_is_refused():
    for ours, theirs in (("muon", "adamw"), ("adamw", "muon"), ("adamw", "adam")):
        state = make_step(optimiser={"kind": theirs}).state_dict()
        with pytest.raises(ValueError, match=f"the state of another optimiser than {ours}"):
            make_step(optimiser={"kind": ours}).load_state_dict(state)


def test_a_state_without_averages_begins_them_anew():
    step = make_step(ema=0.5)
    step(batch(), 0, 1e-3)
    state = through_a_file(make_step(ema=0).state_dict())
    assert state["ema"] is None
    step.load_state_dict(state)
    make_step(ema=0).load_state_dict(step.state_dict())


def test_what_is_drawn_depends_on_seed_number_and_process_alone():
    """By the formula that runs in progress resume with."""
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        step = make_step(Share(rank, ranks), data={"seed": 3})
        losses = [step(batch(), number, 0.0) for number in (4, 5, 4)]
        assert torch.initial_seed() == 3 * 1_000_003 + 4 * ranks + rank
        assert losses[0] == losses[2] != losses[1]


def test_a_step_trains_a_model_that_was_left_in_evaluation():
    results = []
    for training in (True, False):
        step = make_step()
        step.model.train(training)
        step(batch(), 0, 1e-3)
        results.append(step.state_dict())
    assert_same(*results)


def test_fresh_weights_depend_on_the_seed_of_the_recipe_alone():
    one = make_step(data={"seed": 3})
    assert_same(make_step(data={"seed": 3}).state_dict(), one.state_dict())
    with pytest.raises(AssertionError):
        assert_same(make_step(data={"seed": 4}).state_dict(), one.state_dict())


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    """And its loss."""
    gradients = []
    loss = {"multi_resolution": 1, "consistency": 1, "disturbance": 1}
    for parts in (1, 2, 4):
        step = make_step(dropout=0, loss=loss, accumulate=parts)
        step.model.eval()  # the statistics of a batch norm are those of the part: with running ones the rest shows
        value = step._backward(*batch(clips=4))
        gradients.append(torch.cat([value.reshape(1), *(p.grad.flatten() for p in step.model.parameters())]))
    for others in gradients[1:]:
        assert (others - gradients[0]).norm() / gradients[0].norm() < 1e-4
        assert others[0].item() == pytest.approx(gradients[0][0].item(), rel=1e-5)


def test_a_batch_in_parts_passes_the_model_in_parts():
    step, sizes = make_step(accumulate=4), []
    step.model.core.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    step(batch(clips=4), 0, 1e-3)
    assert sizes == [1] * 4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_the_model_alone(precision):
    """Weights, gradients and loss are float32 always."""
    step, seen = make_step(precision=precision), {}

    def note(part):
        return lambda *_: seen.update({part: (torch.ones(2, 2) @ torch.ones(2, 2)).dtype})

    step.model.core.register_forward_pre_hook(note("model"))
    step.loss.register_forward_pre_hook(note("loss"))
    step.loss.register_forward_hook(lambda module, given, loss: seen.update(enhanced=given[0].dtype, value=loss.dtype))
    assert math.isfinite(step(batch(), 0, 1e-3))
    single = torch.float32
    assert seen == {"model": getattr(torch, precision), "loss": single, "enhanced": single, "value": single}
    assert {p.dtype for p in step.model.parameters()} == {single}
    assert {p.grad.dtype for p in step.model.parameters() if p.grad is not None} == {single}


def test_bfloat16_changes_what_the_model_computes():
    losses = {p: make_step(precision=p, dropout=0)(batch(), 0, 1e-3) for p in ("float32", "bfloat16")}
    assert losses["float32"] != losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2)


def test_bfloat16_is_picked_where_the_processor_computes_in_it(monkeypatch):
    for capability, avx512, amx in (("AVX512", True, False), ("AVX512", False, True), ("AVX512", False, False),
                                    ("AVX2", True, True)):  # fmt: skip
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=avx512: value)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value)
        has = capability == "AVX512" and (avx512 or amx)
        assert pick_dtype("auto", CPU) == (torch.bfloat16 if has else torch.float32)
        assert pick_dtype("float32", CPU) == torch.float32
        assert pick_dtype("bfloat16", CPU) == torch.bfloat16
