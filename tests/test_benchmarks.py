"""The tools around the benchmarks: what they print, and that rivals compute the same."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastenh.models.registry import build

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def row(name, impl, clips, p50, **more):
    return {"name": name, "impl": impl, "clips": clips, "p50_ms": p50, "x_realtime": 3e3 * clips / p50, **more}


def result(**times):
    rows = [row("mask_head", impl, 64, p50) for impl, p50 in times.items()]
    return {"device": "NVIDIA H100", "torch": "2.11", "triton": "3.6", "commit": "abc", "date": "2026-11-23",
            "copy_tb_s": 3.0, "matmul_tflop_s": 700.0, "rows": rows,
            "left_out": ["model_forward: out of time"]}  # fmt: skip


def compare(*paths):
    command = [sys.executable, str(FOLDER / "compare.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
    for name in cases.OPERATIONS:
        function = cases.operation(name, "eager_fp32")
        with cases.conditions("eager_fp32", device):
            assert function(*cases.arguments(name, 1, torch.float32, device)).shape[0] == 1


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


def test_compare_refuses_estimates_beside_measurements(tmp_path):
    measured, estimated = tmp_path / "a.json", tmp_path / "b.json"
    measured.write_text(json.dumps(result(triton_bf16=1.0)))
    estimated.write_text(json.dumps({"launches": [{"name": "x", "estimated_us": 1.0}], "estimated_us": 1.0}))
    assert "not comparable" in compare(measured, estimated).stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_the_gpu_run_says_that_it_needs_one():
    done = subprocess.run([sys.executable, str(FOLDER / "gpu.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, "needs CUDA" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
