"""Which backend runs where: asked for, chosen, proven; and that every operation has what the dispatcher relies on."""

import inspect
import json

import pytest
import torch

import fastenh_kernels
from benchmarks.roofline.shipped import WINDOWS, differentiate
from fastenh.models.dpt import DPTConfig
from fastenh.models.dpt_complex import DPTComplexConfig
from fastenh_kernels import backend, proof, proving
from fastenh_kernels.examples import DPT, DPT_COMPLEX, HISTORY, Inputs
from fastenh_kernels.operation import OPERATIONS, dtype_of
from fastenh_kernels.shared.launch import recording

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


def proven_faults(dtype=torch.float32, gradients=False):
    return [found.fault for found in proof.proofs(CPU, dtype, frames=(1,), gradients=gradients) if found.fault]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("gradients", [False, True])
def test_every_kernel_proves_itself(interpreted, dtype, gradients):
    assert proven_faults(dtype, gradients) == []


def test_a_wrong_or_failing_kernel_is_named(interpreted, monkeypatch):
    """What decides whether ``auto`` takes the kernels: nothing wrong with them as they are, to begin with."""
    for name in OPERATIONS.keys() - {"complex_mask", "upsampled_moments"}:
        monkeypatch.delitem(OPERATIONS, name)
    assert proven_faults() == proven_faults(gradients=True) == []
    mask, moments = OPERATIONS["complex_mask"], OPERATIONS["upsampled_moments"]
    right, right_moments = mask.kernel, moments.kernel
    monkeypatch.setattr(mask, "kernel", lambda *arguments: right(*arguments) * 1.1)
    assert proven_faults()[0] == "complex_mask (none, 1 frames) is 1.0e-01 from the reference"
    monkeypatch.setattr(mask, "kernel", lambda *arguments: 1 / 0)
    assert proven_faults()[0] == "complex_mask (none, 1 frames) fails (ZeroDivisionError: division by zero)"
    monkeypatch.setattr(mask, "kernel", right)
    monkeypatch.setattr(moments, "kernel", lambda z, bins: tuple(1.2 * moment for moment in right_moments(z, bins)))
    assert "gradient of upsampled_moments (1 frames) is 2.0e-01 from the reference" in proven_faults(gradients=True)


def test_the_proof_takes_what_will_run():
    """The crop and the window, and for training the configurations that dropout takes."""
    cases = list(proof._cases(torch.device("meta"), torch.float16, proof.FRAMES, True, "axis_attention"))
    assert [label for label, *_ in cases] == [
        f"{axis}, {frames} frames{more}"
        for frames in (188, 256)
        for axis in ("frequency", "time", f"time, history {HISTORY}")
        for more in ("", ", dropout")
    ]
    assert (torch.bfloat16, torch.float32, torch.float16) == proving.DTYPES
    assert WINDOWS.frames in proof.FRAMES
    _, operation, arguments, truths_of = cases[1]
    assert arguments == (*truths_of, proof._DROPS_NOTHING)
    assert cases[5][2][3:] == (proof._DROPS_NOTHING, HISTORY)
    with recording() as launches:
        differentiate(operation, arguments)()
    assert all(made.arguments.get("DROPOUT", 1) > 0 for made in launches)


def test_what_fails_falls_back_alone(monkeypatch, caplog):
    """An operation in a dtype and use; the others stay on their kernels."""
    monkeypatch.setattr(backend, "_triton_obstacle", lambda *device: "")
    wrong = {proving.key("axis_layer", "bfloat16", True): "axis_layer is 3.2e-01 from the reference"}
    monkeypatch.setattr(proving, "faults", lambda device: wrong)
    backend._faults.cache_clear()
    gpu = torch.device("cuda", 0)
    with caplog.at_level("INFO", logger="fastenh"):
        chosen = {
            (name, dtype, training): backend.choose(gpu, training, name, dtype).name
            for name in OPERATIONS for dtype in proving.DTYPES for training in (False, True)
        }  # fmt: skip
        whole = backend.choose(gpu)
    backend._faults.cache_clear()
    fallen = [case for case, name in chosen.items() if name == "reference"]
    assert fallen == [("axis_layer", torch.bfloat16, True)]
    assert (whole.name, "but for axis_layer, bfloat16, training: axis_layer is 3.2e-01" in whole.reason) == (
        "triton",
        True,
    )
    assert len(caplog.records) == 1  # a line a device


def test_an_operation_is_asked_for_in_the_dtype_it_computes_in():
    spectrum, weight = torch.empty(1, 2, 3, dtype=torch.complex64), torch.empty(4)
    assert dtype_of([spectrum, weight]) == dtype_of([spectrum]) == torch.float32
    assert dtype_of([spectrum, weight.half()]) == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert dtype_of([spectrum, weight]) == torch.bfloat16


def test_a_proof_is_remembered(monkeypatch, tmp_path):
    """By device, versions and code; not where it says nothing of the kernel."""
    monkeypatch.setenv("FASTENH_CACHE", str(tmp_path))
    row = {"operation": "mask_head", "dtype": "float16", "gradients": False}
    will_find = ["mask_head fails (OutOfMemoryError: CUDA out of memory)", "", "wrong"]
    monkeypatch.setattr(proving, "findings", lambda device: [row | {"fault": will_find.pop(0)}])
    assert "out of memory" in proving.faults(CPU)["mask_head, float16, inference"]
    assert proving.faults(CPU) == proving.faults(CPU) == {}
    monkeypatch.setattr(proving, "_version", lambda package: "another")
    assert proving.faults(CPU) == {"mask_head, float16, inference": "wrong"}
    assert proving.faults(CPU) == {"mask_head, float16, inference": "wrong"}
    assert not will_find
    will_find.append("wrong")
    monkeypatch.setenv("FASTENH_CACHE", "/dev/null/nowhere")
    assert proving.faults(CPU) == {"mask_head, float16, inference": "wrong"}


@pytest.mark.slow
def test_a_child_proves_an_operation(interpreted):
    rows = proving._child("cpu", "float32", "complex_mask", (1,))
    assert [row["fault"] for row in rows] == [""] * 10
    assert [row["gradients"] for row in rows] == [False] * 5 + [True] * 5


@pytest.mark.linux
def test_a_child_that_dies_is_a_fault(monkeypatch):
    monkeypatch.setattr(proving.sys, "executable", "/bin/false")
    rows = proving._child("cpu", "float32", "complex_mask")
    assert [row["fault"] for row in rows] == ["complex_mask fails (no answer from its test (1))"] * 2
    assert [row["gradients"] for row in rows] == [False, True]


@pytest.mark.linux
def test_a_child_that_hangs_is_a_fault_and_what_it_said_counts(monkeypatch, tmp_path):
    said = proving._row(proof.Proof("mask_head", 1.0, 0.1), "mask_head", "float16", False)
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(proving.sys, "executable", str(script))
    monkeypatch.setattr(proving, "_PATIENCE_S", 1)
    rows = proving._child("cpu", "float16", "mask_head")
    assert rows[0] == said
    assert [row["fault"] for row in rows[1:]] == ["mask_head fails (no answer from its test (no end))"] * 2
