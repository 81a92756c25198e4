"""Which backend runs where: asked for, chosen, proven; and that every operation has what the dispatcher relies on."""

import inspect

import pytest
import torch

import fastenh_kernels
from fastenh.models.dpt import DPTConfig
from fastenh.models.dpt_complex import DPTComplexConfig
from fastenh_kernels import backend, proof
from fastenh_kernels.examples import DPT, DPT_COMPLEX, Inputs
from fastenh_kernels.operation import OPERATIONS
from fastenh_kernels.proof import disproof

CPU = torch.device("cpu")


def test_backend_choice_and_refusal(monkeypatch):
    assert backend.choose(CPU).name == "cpu"
    assert backend.choose(torch.device("meta")).name == "reference"
    with backend.use_backend("triton"), pytest.raises(backend.BackendError, match="cannot run on cpu"):
        backend.choose(CPU)
    with backend.use_backend("cpu"), pytest.raises(backend.BackendError, match="made for processors"):
        backend.choose(torch.device("meta"))
    monkeypatch.setenv("FASTENH_BACKEND", "nonsense")
    with pytest.raises(backend.BackendError, match="FASTENH_BACKEND"):
        backend.choose(CPU)
    with backend.use_backend("reference"):
        assert backend.choose(CPU).reason == "asked for"
    with pytest.raises(backend.BackendError, match="must be one of auto, reference, cpu"), backend.use_backend("x"):
        raise AssertionError("taken all the same")


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_whole(name):
    """Public, described, with examples that its implementations take in one order of arguments."""
    operation, public = OPERATIONS[name], getattr(fastenh_kernels, name)
    assert len(inspect.getdoc(public)) > 80
    names = list(inspect.signature(public).parameters)
    for implementation in (operation.reference, operation.cpu, operation.serves):
        inspect.signature(implementation).bind(*names)
    examples = list(operation.examples(Inputs(torch.device("meta"), torch.float32, frames=3)))
    assert len({example.label for example in examples}) == len(examples) > 0
    for example in examples:
        public(*example.arguments)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_cpu_backend_gives_what_the_reference_gives(name):
    operation = OPERATIONS[name]
    for example in operation.examples(Inputs(CPU, torch.float32, clips=1, frames=3)):
        run = proof._gradients if example.use != "inference" else proof._results
        ours, theirs = (run(function, example.arguments) for function in (operation.cpu, operation.reference))
        for result, truth in zip(ours, theirs, strict=True):
            assert proof._distance(result, truth) < 1e-4, example.label


def test_the_shapes_of_the_examples_are_those_of_the_models():
    wide, narrow = DPTConfig(), DPTComplexConfig()
    assert (257, 129, wide.front_channels, 65, wide.channels, wide.heads, wide.feed_forward, wide.head_channels) == DPT
    path = narrow.bands, narrow.channels, narrow.heads, narrow.feed_forward
    assert (DPT_COMPLEX.bands, DPT_COMPLEX.channels, DPT_COMPLEX.heads, DPT_COMPLEX.hidden) == path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("gradients", [False, True])
def test_every_kernel_proves_itself(interpreted, dtype, gradients):
    assert disproof(CPU, dtype, frames=1, gradients=gradients) == ""


def test_a_wrong_or_failing_kernel_is_named(interpreted, monkeypatch):
    """What decides whether ``auto`` takes the kernels: nothing wrong with them as they are, to begin with."""
    for name in OPERATIONS.keys() - {"complex_mask", "upsampled_moments"}:
        monkeypatch.delitem(OPERATIONS, name)
    assert disproof(CPU, torch.float32, frames=1) == ""
    assert disproof(CPU, torch.float32, frames=1, gradients=True) == ""
    mask, moments = OPERATIONS["complex_mask"], OPERATIONS["upsampled_moments"]
    right, right_moments = mask.kernel, moments.kernel
    monkeypatch.setattr(mask, "kernel", lambda *arguments: right(*arguments) * 1.1)
    assert disproof(CPU, torch.float32, frames=1) == "complex_mask (none) is 1.0e-01 from the reference in float32"
    monkeypatch.setattr(mask, "kernel", lambda *arguments: 1 / 0)
    expected = "complex_mask (none) fails (ZeroDivisionError: division by zero) in float32"
    assert disproof(CPU, torch.float32, frames=1) == expected
    monkeypatch.setattr(mask, "kernel", right)
    monkeypatch.setattr(moments, "kernel", lambda z, bins: tuple(1.2 * moment for moment in right_moments(z, bins)))
    assert "gradient of upsampled_moments is 2.0e-01" in disproof(CPU, torch.float32, frames=1, gradients=True)


def test_automatic_choice_needs_the_proof(monkeypatch, caplog):
    """Of the forward pass for inference, of the gradients, too, for training."""
    monkeypatch.setattr(backend, "_triton_obstacle", lambda *device: "")
    gpu = torch.device("cuda", 0)
    wrong = "mask_head is 1.0e+00 from the reference"
    for found, names in (("", ("triton", "triton")), (wrong, ("reference", "reference"))):
        backend._proven_obstacle.cache_clear()
        monkeypatch.setattr(proof, "disproof", lambda *_, found=found, **__: found)
        with caplog.at_level("INFO", logger="fastenh"):
            choices = [backend.choose(gpu, training=training) for training in (False, True, False, True)]
        assert tuple(choice.name for choice in choices) == names * 2
        assert all(found in choice.reason for choice in choices)
    backend._proven_obstacle.cache_clear()
    monkeypatch.setattr(proof, "disproof", lambda *_, gradients: wrong if gradients else "")
    assert [backend.choose(gpu, training=training).name for training in (False, True)] == ["triton", "reference"]
    backend._proven_obstacle.cache_clear()
    assert len(caplog.records) == 4  # a line a device and use
    assert "inference: reference path, mask_head is" in caplog.text
