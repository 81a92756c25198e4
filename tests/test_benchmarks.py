"""The tools around the benchmarks: what they print, and that rivals compute the same."""

import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastenh.models.dpt import DPTConfig
from fastenh.models.registry import build

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def load():
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def row(name, impl, clips, p50, **more):
    return {"name": name, "impl": impl, "clips": clips, "p50_ms": p50, "x_realtime": 3e3 * clips / p50, **more}


def result(**times):
    rows = [row("mask_head", impl, 64, p50) for impl, p50 in times.items()]
    return {"device": "NVIDIA H100", "torch": "2.11", "triton": "3.6", "commit": "abc", "date": "2026-11-23",
            "copy_tb_s": 3.0, "matmul_tflop_s": 700.0, "rows": rows,
            "left_out": ["model_forward: out of time"]}  # fmt: skip


def compare(*paths):
    command = [sys.executable, "-m", "benchmarks.compare", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_textbook_module_is_the_same_model(load):
    torch.manual_seed(0)
    core = build("dpt").eval().core
    noisy = torch.randn(1, 257, 7, dtype=torch.complex64)
    with torch.no_grad():
        ours = core(noisy)
        torch.testing.assert_close(load("textbook").TextbookDPT(core)(noisy), ours, atol=1e-5, rtol=1e-4)


def test_every_operation_has_its_inputs(load):
    cases = load("cases")
    device = torch.device("cpu")
    for name in cases.TIMED:
        function = cases.operation(name, "eager_fp32")
        with cases.conditions("eager_fp32", device):
            assert function(*cases.arguments(name, 1, torch.float32, device)).shape[0] == 1


@pytest.mark.parametrize("implementation", ["eager_fp32", "eager_bf16_sdpa"])
def test_both_passes_of_every_operation(load, implementation):
    cases = load("cases")
    dtype = cases.dtype_of(implementation)
    for name in cases.TIMED_IN_TRAINING:
        given = cases.arguments(name, 1, dtype, CPU, frames=3, training=True)
        with cases.conditions(implementation, CPU, gradients=True):
            gradients = cases.forward_backward(name, implementation, given)()
        tensors = [value for value in torch.utils._pytree.tree_leaves(given) if isinstance(value, torch.Tensor)]
        asking = [value for value in tensors if value.requires_grad]  # in an example without real tensors
        shapes = [value.shape for value in asking or tensors if asking or not value.is_complex()]
        assert [gradient.shape for gradient in gradients] == shapes, name
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients), name


def test_both_passes_on_the_kernels(load, interpreted):
    """Every case on fake tensors; the cheapest one computed, where it must give the gradients of the reference."""
    cases = load("cases")
    for name in cases.TIMED_IN_TRAINING:
        for implementation in ("triton_fp32", "triton_bf16"):
            with FakeTensorMode(), cases.conditions(implementation, CPU, gradients=True):
                given = cases.arguments(name, 2, cases.dtype_of(implementation), CPU, frames=3, training=True)
                assert all(g.dtype == given[0].dtype for g in cases.forward_backward(name, implementation, given)()
                           if not given[0].is_complex()), name  # fmt: skip
    given = cases.arguments("complex_mask", 1, torch.float32, CPU, frames=3)
    ours, theirs = (cases.forward_backward("complex_mask", i, given)() for i in ("triton_fp32", "eager_fp32"))
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_compared_before_anything_is_timed(load, monkeypatch):
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "TIMED_IN_TRAINING", ("complex_mask", "encoder_conv"))
    cases = load("cases")
    monkeypatch.setattr(gpu, "check_step_parity", lambda device: None)
    monkeypatch.setattr(gpu, "arguments", functools.partial(cases.arguments, frames=3))
    right = cases.forward_backward

    def served_by_the_reference(name, implementation, given):
        return right(name, "eager_" + implementation.split("_")[1], given)

    def wrong(name, implementation, given):
        scale = 1.5 if implementation == "triton_bf16" and name == "encoder_conv" else 1.0
        return lambda: tuple(scale * g for g in served_by_the_reference(name, implementation, given)())

    monkeypatch.setattr(gpu, "forward_backward", served_by_the_reference)
    gpu.check_gradient_parity(CPU)
    monkeypatch.setattr(gpu, "forward_backward", wrong)
    with pytest.raises(gpu.ParityError, match="encoder_conv, triton_bf16: gradient 0"):
        gpu.check_gradient_parity(CPU)


def test_parity_of_the_training_step(load, monkeypatch):
    """The reference path in place of the kernels passes; with its gradients turned round it does not."""
    gpu, cases = load("gpu"), load("cases")

    class Step(cases.TrainingStep):
        sign = 1.0

        def __init__(self, name, implementation, *given, **size):
            self.ours = implementation == "triton_bf16"
            super().__init__("train_step_reference", "eager_" + implementation.split("_")[1], *given, **size)

        def differentiate(self):
            super().differentiate()
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self.sign if self.ours else 1.0

    monkeypatch.setattr(gpu, "TrainingStep", Step)
    gpu.check_step_parity(CPU, samples=512)
    Step.sign = -1.0
    with pytest.raises(gpu.ParityError, match="training step, triton_bf16"):
        gpu.check_step_parity(CPU, samples=512)


def test_training_steps_of_ours_and_the_textbook_are_the_same(load):
    cases = load("cases")
    losses = {}
    every = itertools.product(("train_step", "train_step_reference"), ("eager_fp32", "eager_bf16_sdpa"))
    for name, implementation in every:
        with cases.conditions(implementation, CPU, gradients=True):
            step = cases.TrainingStep(name, implementation, 2, CPU, samples=1000)
            losses[name, implementation] = [step().item() for _ in range(3)]
    truth = losses["train_step", "eager_fp32"]
    assert truth == sorted(truth, reverse=True)
    for found in losses.values():
        assert found == pytest.approx(truth, rel=0.01)


def test_parts_are_the_step(load):
    cases = load("cases")
    whole, split = (cases.TrainingStep("train_step_reference", "eager_fp32", 1, CPU, samples=600) for _ in range(2))
    whole()
    for _, run_part in split.parts():
        run_part()
    for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.fixture
def fake_step(load, monkeypatch, interpreted):
    """Makes the step of ours on the kernels, on fake tensors."""
    cases = load("cases")
    shipped = lambda name: (build(name, DPTConfig(dropout=0.0)), None)  # noqa: E731
    monkeypatch.setattr(cases.checkpoint, "load", shipped)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)  # fake parameters cannot be swapped
    with FakeTensorMode():
        yield cases.TrainingStep("train_step", "triton_bf16", 2, CPU, samples=1000)


def test_the_step_on_the_kernels(fake_step):
    assert fake_step().shape == ()
    names = []
    for name, run_part in fake_step.parts():
        run_part()
        names.append(name)
    assert names == ["forward", "loss", "backward", "optimiser"]


def test_forward_pass_and_loss_on_the_kernels_are_one_graph(load, interpreted):
    cases = load("cases")
    step = cases.TrainingStep("train_step", "triton_fp32", 1, CPU, samples=600)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.graph)
        count = len(graph.graph.output_node().args[0])
        return lambda *_: (torch.zeros((), requires_grad=True),) * count

    torch.compile(step.objective, backend=keep, fullgraph=True, dynamic=False)()
    called = [str(node.target) for graph in graphs for node in graph.nodes if "fastenh" in str(node.target)]
    assert len(graphs) == 1
    assert sum("axis_layer" in name for name in called) == 4
    torch.compiler.reset()


def test_table_shows_the_best_number_of_clips_and_what_was_left_out(load):
    gpu = load("gpu")
    given = result(triton_bf16=0.64, eager_fp32=6.4)
    given["rows"] += [
        row("model_forward", "triton_bf16", n, ms, estimated_us=74.5 * n) for n, ms in ((1, 0.5), (64, 6))
    ]
    lines = gpu.table(given).splitlines()
    assert "NVIDIA H100, torch 2.11" in lines[0]
    assert [line for line in lines if line.startswith("| mask_head")] == [
        "| mask_head | 10.0 (64) | - | 100.0 (64) | - | - | - |  | 300,000 |"
    ]
    assert [line for line in lines if line.startswith("| model_forward")] == [
        "| model_forward | 93.8 (64) | - | - | - | - | - | 74.5 | 32,000 |"
    ]
    assert lines[-1] == "left out: model_forward: out of time"


def test_table_of_training_shows_every_step_its_memory_and_its_shares(load):
    gpu = load("gpu")
    given = result()
    given["rows"] = [
        row("mask_head forward+backward", "triton_bf16", 64, 1.28, estimated_us=640.0),
        row("train_step", "triton_bf16", 8, 4.0, peak_memory_mb=1000.4, estimated_us=8 * 340.7),
        row("train_step", "eager_fp32", 64, 128.0, peak_memory_mb=40_000.0),
        row("train_step_graph", "triton_bf16", 64, 19.2, peak_memory_mb=8000.0),
    ]
    given["shares_of_step"] = {64: {"kernels": 0.6, "loss": 0.1, "optimiser": 0.05, "other": 0.25}}
    lines = gpu.table(given).splitlines()
    assert "| mask_head forward+backward | 20.0 (64) | - | - | - | - | - | 10.0 | 150,000 |" in lines
    assert "| train_step | triton_bf16 | 8 | 4.00 | 500.0 | 340.7 | 6,000 | 1,000 |" in lines
    assert "| train_step | eager_fp32 | 64 | 128.00 | 2000.0 |  | 1,500 | 40,000 |" in lines
    assert any(line.startswith("| train_step_graph | triton_bf16 | 64 |") for line in lines)
    assert any(line.endswith("64 clips: kernels 60%, loss 10%, optimiser 5%, other 25%") for line in lines)
    again = json.loads(json.dumps(given))
    assert gpu.table(again) == gpu.table(given)


def test_shares_of_the_step(load):
    gpu = load("gpu")
    times = {
        "forward": {"mask_head_kernel": 30.0, "batch_norm": 10.0},
        "loss": {"fft": 8.0, "mul": 2.0},
        "backward": {"mask_head_backward_kernel": 40.0, "batch_norm_backward": 5.0},
        "optimiser": {"FusedAdam": 5.0},
    }
    assert {"mask_head_kernel", "mask_head_backward_kernel"} <= gpu.our_kernels()
    assert gpu.shares_of_step(times) == pytest.approx({"kernels": 0.7, "loss": 0.1, "optimiser": 0.05, "other": 0.15})


def test_the_goals_of_training_come_first(load):
    gpu, cases = load("gpu"), load("cases")
    steps = gpu.steps("training")
    assert len(set(steps)) == len(steps)
    first = [steps.index(step) for step in (("train_step", "triton_bf16", 64), ("train_step", "eager_fp32", 64),
                                            ("train_step", "compile_bf16", 64))]  # fmt: skip
    assert max(first) < 12
    operations = [index for index, step in enumerate(steps) if step[0].endswith(gpu.BOTH)]
    assert {steps[index][0].removesuffix(gpu.BOTH) for index in operations} == set(cases.TIMED_IN_TRAINING)
    assert {step[1] for step in steps if step[0].endswith(gpu.BOTH)} == set(cases.GPU_IMPLEMENTATIONS)
    assert max(first) < min(operations)
    assert {step[2] for step in steps if step[0] == "train_step"} == {8, 16, 64}
    tuned = [step[1] == "compile_bf16" for step in steps[operations[0] :]]
    assert tuned == sorted(tuned)


@pytest.mark.parametrize("part", ["forward", "training"])
def test_every_row_of_ours_has_its_estimate(load, monkeypatch, interpreted, part):
    """The names of the launches are sorted into the rows; the machine code is counted by the test below."""
    from benchmarks.roofline import pipes, shipped, tables

    def counted(launches, share):
        busy = dict.fromkeys(pipes.PIPES, 0.0) | {"dram": 1.0}
        use = pipes.Usage(busy, dram_h100=1.0, tensor_flop=2.0, dram_bytes=3.0)
        return [(name, launch, use) for name, launch in launches]

    monkeypatch.setattr(tables, "pipe_usage", counted)
    monkeypatch.setattr(load("gpu"), "moved_by_pytorch", lambda: 7.0)
    found = load("gpu").estimated(part)
    if part == "forward":
        assert {"model_forward", "axis_layer_frequency", "axis_layer_time", "mask_head", "decoder_taps"} < set(found)
        launches = list(shipped.forward_launches(torch.bfloat16, shipped.CLIPS))
        assert found["model_forward"]["flop"] == 2.0 * len(launches)
        return
    gpu, cases = load("gpu"), load("cases")
    rows = {name + gpu.BOTH for name in cases.TIMED_IN_TRAINING} | {"train_step"}
    alone = {"complex_mask", "axis_attention_frequency", "axis_attention_time"}  # in other kernels of the step
    assert set(found) == rows - {name + gpu.BOTH for name in alone}
    launches = list(shipped.training_launches(torch.bfloat16, shipped.CLIPS))
    assert found["train_step"]["flop"] == 2.0 * len(launches)
    assert found["train_step"]["bytes"] == 3.0 * len(launches) + 7.0
    assert found["train_step"]["estimated_us"] > len(launches)
    of_layers = sum("layer" in name for name, _ in launches)
    assert sum(found[f"axis_layer_{axis}{gpu.BOTH}"]["flop"] for axis in ("frequency", "time")) == of_layers


@pytest.mark.slow
@pytest.mark.parametrize("part", ["forward", "training"])
def test_estimates_are_counted_without_a_gpu(part):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = f"import json; from benchmarks import gpu; print(json.dumps(gpu.estimated({part!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT,
                          check=True)  # fmt: skip
    whole = json.loads(done.stdout.splitlines()[-1])["train_step" if part == "training" else "model_forward"]
    assert 10 < whole["estimated_us"] < 1000
    assert whole["flop"] > 2e10


def test_what_tunes_itself_comes_last(load):
    steps = load("gpu").steps()
    compiled = [step[1] == "compile_bf16" for step in steps]
    assert compiled == sorted(compiled)
    assert any(compiled)
    assert len(set(steps)) == len(steps)
    assert ("model_forward", "eager_fp32", 1) in steps


def test_shares_stand_beside_the_estimate(load):
    gpu = load("gpu")
    estimates = {"mask_head": {"estimated_us": 2.4, "bytes": 6e6, "flop": 5e8}}
    rates = {"copy_tb_s": 3.0, "matmul_tflop_s": 700.0}
    found = gpu.shares(row("mask_head", "triton_bf16", 64, 0.256), estimates, rates)
    assert found["share_of_copy"] == pytest.approx(0.5)
    assert found["estimated_us"] == pytest.approx(153.6)
    assert gpu.shares(row("mask_head", "eager_fp32", 64, 0.256), estimates, rates) == {}
    step = {"train_step": {"estimated_us": 300.0, "bytes": 6e8, "flop": 7e10}}
    for name in ("train_step", "train_step_graph", "train_step_compile", "train_step_compile_graph"):
        assert gpu.shares(row(name, "triton_bf16", 8, 10.0), step, rates)["estimated_us"] == pytest.approx(2400)


def test_compare_says_what_changed(tmp_path):
    old, new = tmp_path / "a.json", tmp_path / "b.json"
    old.write_text(json.dumps(result(triton_bf16=0.64, eager_fp32=6.4)))
    new.write_text(json.dumps(result(triton_bf16=0.32, triton_fp32=1.0)))
    done = compare(old, new)
    assert done.returncode == 0
    assert "-50.0%  faster" in done.stdout
    assert done.stdout.count("only") == 2
    assert "measured on NVIDIA H100" in done.stdout


@pytest.mark.parametrize("content", ["", "{}", '{"rows": [{}], "device": "x"}', "[1]"])
def test_compare_refuses_other_files(tmp_path, content):
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text(content)
    good.write_text(json.dumps(result(triton_bf16=1.0)))
    done = compare(good, bad)
    assert done.returncode == 1
    assert "bad.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_the_gpu_run_says_that_it_needs_one():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, "needs CUDA" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
