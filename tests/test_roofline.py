"""The gate, and the counting of pipes: on machine code written by hand, and of the model as it is compiled."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.roofline import pipes
from benchmarks.roofline.shipped import CLIP_FRAMES, STEP_MEGABYTES, forward_launches, training_launches
from benchmarks.traffic import CLIPS, kept_by_each, step_traffic
from fastenh.models.registry import build
from fastenh_kernels import backend
from fastenh_kernels.shared.launch import Cost, Launch, chunk_of, recording

SASS = """
.text.kernel:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/                   FFMA R1, R1, R2, R3 ;
.L_x_0:
        /*0020*/                   MUFU.EX2 R4, R4 ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
        /*0050*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR20], R178 ;
        /*0060*/              @!P4 BRA `(.L_x_2) ;
.L_x_3:
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR20], R178 ;
        /*00b0*/              @!P4 BRA `(.L_x_2) ;
        /*00c0*/                   BRA `(.L_x_3) ;
.L_x_4:
        /*00d0*/                   BRA `(.L_x_4);
"""
WGMMA, MMA = 64 * 64 * 16 * 2 / 4, 16 * 8 * 16 * 2  # operations of a warp


def launch_of(loops, flop, programs=132, warps=4):
    return Launch(None, programs, {}, warps, 1, Cost(loops, flop, l2_bytes=5.5e6, dram_bytes=4.3e6))


def test_instructions_count_as_often_as_they_run():
    used = pipes.usage(SASS, launch_of((3, 5), flop=0), 1.0)
    cycle = 1e6 / pipes.HERTZ
    assert used.tensor_flop == 132 * 4 * (15 * WGMMA + MMA)
    us = used.microseconds
    assert us["special"] == pytest.approx(4 * 15 * 2 * cycle)
    assert us["fp32"] == pytest.approx(4 * 3 * 0.25 * cycle)
    assert us["load_store"] == pytest.approx(4 * 4 * cycle)
    assert us["tensor"] == pytest.approx(4 * (15 * WGMMA / 4096 + MMA / 2560) * cycle)
    assert (us["l2"], us["dram"]) == pytest.approx((1.0, 1.0))
    assert used.dram_h100 == pytest.approx(4.3 / 3.0)
    assert used.bound == max(us.values()) == us[used.busiest]
    arithmetic = max(us[pipe] for pipe in pipes.ARITHMETIC)
    assert used.estimate == pytest.approx(max(used.bound, us["tensor"] + arithmetic + us["load_store"]))
    half = pipes.usage(SASS, launch_of((3, 5), flop=0), 0.5)
    assert half.estimate == pytest.approx(used.estimate / 2)


def test_a_loop_that_was_unrolled_is_told_by_the_operations():
    """Three loops are asked for and two are there: the unrolled one is found by what must be computed at least."""
    programs = 132 * 4
    used = pipes.usage(SASS, launch_of((3, 5, 7), flop=programs * (21 * WGMMA + MMA)), 1.0)
    assert used.tensor_flop == programs * (21 * WGMMA + MMA)
    with pytest.raises(pipes.LoopsDifferError):
        pipes.usage(SASS, launch_of((3, 5), flop=programs * 99 * WGMMA), 1.0)
    with pytest.raises(pipes.LoopsDifferError):
        pipes.usage(SASS, launch_of((3,), flop=0), 1.0)


def test_the_counted_launches_are_those_of_the_model():
    """The list that the pipes are counted for, against the launches that the model makes."""
    if not backend.interprets():
        pytest.skip("needs the kernels on the CPU")
    core = build("dpt").eval().core.folded(torch.bfloat16)
    spectrum = torch.randn(2, CLIP_FRAMES, 257, dtype=torch.complex64).transpose(1, 2)
    sixteen_bit = torch.autocast("cpu", torch.bfloat16)
    with backend.use_backend("interpret"), sixteen_bit, torch.no_grad(), recording() as made:
        core(spectrum)
    listed = [launch for _, launch in forward_launches(torch.bfloat16, 2)]
    assert [describe(launch) for launch in made] == [describe(launch) for launch in listed]


def test_the_counted_step_is_that_of_the_model():
    """The operators that a training step calls, and what PyTorch's own operations move in it, against the lists."""
    if not backend.interprets():
        pytest.skip("needs the kernels on the CPU")
    traffic = step_traffic()
    names = dict.fromkeys(re.sub(r"layer \d, \w+", "axis_layer_forward", name).split(":")[0].replace(" ", "_")
                          for name, _ in training_launches(torch.bfloat16, 2))  # fmt: skip
    names = [name.replace("forward_backward", "backward") for name in names]
    assert list(dict.fromkeys(traffic.operators)) == names
    for part, megabytes in STEP_MEGABYTES.items():
        assert traffic.moved[part] / CLIPS / 1e6 == pytest.approx(megabytes, rel=0.02, abs=0.05), part


def test_training_keeps_a_third_of_what_the_textbook_keeps():
    if not backend.interprets():
        pytest.skip("needs the kernels on the CPU")
    kept = kept_by_each()
    assert kept["kernels, bfloat16"] <= kept["textbook, float32"] / 3


def describe(launch):
    arguments = {name: described(value) for name, value in launch.arguments.items()}
    return launch.kernel.fn.__name__, launch.programs, launch.num_warps, launch.num_stages, launch.cost, arguments


def described(value):
    tensor = getattr(value, "base", value)
    return (tensor.shape, tensor.stride(), tensor.dtype) if isinstance(tensor, torch.Tensor) else value


def test_a_chunk_fills_the_device_but_is_not_too_short():
    device = torch.device("meta")
    assert chunk_of(188, 2, device) == 8
    assert chunk_of(188, 264, device) == 188
    assert chunk_of(0, 1, device) == 8


@pytest.mark.slow
def test_pipes_of_the_forward_pass(tmp_path):
    """What the tool prints last, and that the tensor cores do what the model asks for, and how much padding."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.roofline", "--pipes", "--json", str(tmp_path / "pipes.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for line, name in zip(done.stdout.splitlines()[-2:], ("forward", "training step"), strict=True):
        assert line.startswith(f"{name}: bound ")
        assert line.endswith("x real time (sm_90, estimated)")
    written = json.loads((tmp_path / "pipes.json").read_text())
    assert written["measured"] is False
    summary = written["forward"]
    # per frame and band: layers, attention along F and T, decoder; the encoder has 9 x 32 x 128 products a band
    frames, bands, channels = 188, 65, 128
    layer = 2 * channels * (3 * channels + channels + 2 * 4 * channels)
    attention = 4 * channels * (bands + frames) * 2
    asked = frames * bands * (4 * layer + attention + 2 * 9 * 32 * channels + 2 * 9 * channels * 64)
    head = frames * 257 * 64 * 6 * 2  # the upsampling's products that are not zero
    assert sum(row["flop"] for row in summary["launches"]) == pytest.approx(asked + head, rel=1e-6)
    for row in summary["launches"]:  # padding: attention 1.52 (65 bands as 80), encoder 1.39 (96 values as 128)
        allowed = 15 if row["kernel"] == "mask_head_kernel" else 1.53
        assert row["flop"] * 0.999 <= row["tensor_flop"] <= allowed * max(row["flop"], 1), row["name"]
    step = written["training_step"]
    # back: seven products of the feed-forward's size, two of each projection's, five of attention's half; the encoder's
    # input is made of pairs of bands with a quarter of zeros; the head is done three times, and twice each way
    products = 2 * channels * channels * (7 * 4 + 2 + 2 * 3)
    convolutions = (2 + 1 / 3) * 2 * 9 * 32 * channels + 2 * 2 * 9 * channels * 64
    backward = frames * bands * (4 * products + 2.5 * attention + convolutions)
    found = sum(row["flop"] for row in step["launches"])
    assert found == pytest.approx(asked + backward + (1 + 1 + 2 + 2) * head, rel=1e-6)
    for part in (summary, step):
        assert part["estimated_us"] == pytest.approx(sum(row["estimated_us"] for row in part["launches"]))


@pytest.mark.slow
def test_every_kernel_compiles_without_spills():
    """The gate, in processes of its own: here the kernels are interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    command = [sys.executable, "-m", "benchmarks.roofline", "--arch"]
    gates = [(arch, subprocess.Popen([*command, arch], **options)) for arch in ("sm_80", "sm_90")]
    for arch, gate in gates:
        said = gate.communicate()[0]
        assert gate.returncode == 0, said
        assert "every kernel passes the gate" in said
        assert said.count(arch) >= 3 * 55


def test_options_that_do_not_go_together():
    for options in (["--json", "x.json"], ["--pipes", "--arch", "sm_80"]):
        command = [sys.executable, "-m", "benchmarks.roofline", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
