"""The gate, and the counting of pipes: on machine code written by hand, and of the model as it is compiled."""

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.roofline import pipes, record
from benchmarks.roofline.cubins import _TENSOR_CORE, Cubin
from benchmarks.roofline.shipped import FORWARD, WINDOWS, Work, forward_launches
from benchmarks.traffic import Traffic, kept_by_each, step_launches, step_traffic, window_traffic, work_of
from fastenh.enhance.enhancer import Enhancer
from fastenh.models.registry import build
from fastenh.train.recipe import load_recipe
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
    assert us["tensor"] == pytest.approx(4 * (15 * WGMMA / (790e12 / 132 / pipes.HERTZ) + MMA / 2560) * cycle)
    assert (us["l2"], us["dram"]) == pytest.approx((1.0, 1.0))
    assert used.dram_h100 == pytest.approx(4.3 / 3.0)
    assert used.bound == max(us.values()) == us[used.busiest]
    arithmetic = max(us[pipe] for pipe in pipes.ARITHMETIC)
    assert used.estimate == pytest.approx(max(used.bound, us["tensor"] + arithmetic + us["load_store"]))
    serial = max(us["tensor"], us["operands"]) + us["load_store"] + us["l2"] + us["dram"]
    added = max(us["issue"], us["fp32"] + us["integer"] + us["special"] + us["shuffle"])
    assert used.serial == pytest.approx(serial + added)
    assert used.bound <= used.estimate < used.serial
    half = pipes.usage(SASS, launch_of((3, 5), flop=0), 0.5)
    assert half.estimate == pytest.approx(used.estimate / 2)


def test_what_tests_a_loop_at_its_top_runs_once_more():
    """An attempt that is repeated only where it failed: the test runs, what would repeat it does not."""
    sass = """
.L_x_0:
        /*0000*/                   FFMA R1, R1, R2, R3 ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   MUFU.EX2 R4, R4 ;
        /*0030*/                   BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   EXIT ;
"""
    cycle = 1e6 / pipes.HERTZ
    for trips in (0, 2):
        us = pipes.usage(sass, launch_of((trips,), flop=0), 1.0).microseconds
        assert us["fp32"] == pytest.approx(4 * (trips + 1) * 0.25 * cycle)
        assert us["special"] == pytest.approx(4 * trips * 2 * cycle)


def test_a_launch_that_leaves_processors_idle_takes_as_long_as_one_that_fills_them():
    one, full, more = (pipes.usage(SASS, launch_of((3, 5), 0, programs), 1.0) for programs in (1, 132, 133))
    for pipe in ("tensor", "issue", "load_store"):
        assert one.microseconds[pipe] == full.microseconds[pipe] == more.microseconds[pipe] / 2
    assert full.tensor_flop == 132 * one.tensor_flop


def test_tiles_are_dealt_out_whole():
    """141 tiles take as long as two on each of 132 processors; two programs on a processor may have one and two."""

    def taken(tiles, programs):
        return pipes.usage(SASS, launch_of((tiles / programs, 5), 0, programs), 1.0).microseconds["special"]

    two = taken(264, 132)
    assert taken(141, 132) == taken(141, 71) == two > taken(132, 132)
    assert taken(300, 264) == pytest.approx(1.5 * two)


def test_a_loop_that_was_unrolled_is_told_by_the_operations():
    """Three loops are asked for and two are there: the unrolled one is found by what must be computed at least."""
    programs = 132 * 4
    used = pipes.usage(SASS, launch_of((3, 5, 7), flop=programs * (21 * WGMMA + MMA)), 1.0)
    assert used.tensor_flop == programs * (21 * WGMMA + MMA)
    with pytest.raises(pipes.LoopsDifferError):
        pipes.usage(SASS, launch_of((3, 5), flop=programs * 99 * WGMMA), 1.0)
    with pytest.raises(pipes.LoopsDifferError):
        pipes.usage(SASS, launch_of((3,), flop=0), 1.0)


@pytest.mark.parametrize("model", FORWARD)
def test_the_counted_launches_are_those_of_the_model(model):
    """The list that the pipes are counted for, against the launches that the model makes."""
    if not backend.interprets():
        pytest.skip("needs the kernels on the CPU")
    core = build(model).eval().core.folded(torch.bfloat16)
    spectrum = torch.randn(2, WINDOWS.frames, 257, dtype=torch.complex64).transpose(1, 2)
    sixteen_bit = torch.autocast("cpu", torch.bfloat16)
    with backend.use_backend("interpret"), sixteen_bit, torch.no_grad(), recording() as made:
        core(spectrum)
    listed = [launch for _, launch in forward_launches(torch.bfloat16, WINDOWS._replace(clips=2), model=model)]
    assert [describe(launch) for launch in made] == [describe(launch) for launch in listed]


def test_what_is_counted_is_what_ships():
    """The window and the batch of the enhancer on a GPU; the batches of the recipes."""
    options = inspect.signature(Enhancer).parameters
    span, context = options["span_seconds"].default, options["context_seconds"].default
    assert WINDOWS.seconds == span
    assert WINDOWS.frames == 1 + round((span + 2 * context) * 16_000) // 256
    on_a_gpu = Enhancer(build("dpt"), torch.device("meta"))
    assert WINDOWS.clips == on_a_gpu.batch_size
    assert work_of(load_recipe("dpt-mix")) == Work(8, 126, 2.0)
    assert work_of(load_recipe("dpt")) == Work(8, 189, 3.0, 0.1)
    assert work_of(load_recipe("dpt_complex")) == Work(3, 189, 3.0)


@pytest.mark.parametrize("name", ["dpt-mix", "dpt", "dpt_complex"])
def test_the_counted_step_is_that_of_the_model(name):
    """The operators that a training step calls, against the list that the pipes are counted for."""
    recipe = load_recipe(name)
    traffic = step_traffic(recipe)
    names = dict.fromkeys(re.sub(r"layer \d, \w+", "axis_layer_forward", name).split(":")[0].replace(" ", "_")
                          for name, _ in step_launches(recipe))  # fmt: skip
    names = [name.replace("forward_backward", "backward") for name in names]
    assert list(dict.fromkeys(traffic.operators)) == names


def test_what_pytorch_moves_in_a_step():
    traffic = step_traffic(load_recipe("dpt-mix"))
    parts = {"forward", "loss", "backward", "clipping", "optimiser", "averages", "sums of parts"}
    assert set(traffic.moved) == set(traffic.calls) == parts
    weights = 4 * 904_705
    assert traffic.moved["averages"] == pytest.approx(3 * weights, rel=0.01)  # both read, one written
    assert traffic.moved["optimiser"] == pytest.approx(8 * weights, rel=0.1)  # value, gradient, two moments
    operators = ["encoder_front", "encoder_conv", *4 * ["axis_layer"], "decoder_taps", "mask_head"]
    assert window_traffic(WINDOWS, "dpt").operators == operators


def test_a_batch_norm_reads_twice():
    norm, x = torch.nn.BatchNorm2d(4), torch.randn(2, 4, 8, 8, requires_grad=True)
    with Traffic() as traffic:
        y = norm(x)
        traffic.part = "backward"
        y.backward(torch.ones_like(y))
    assert traffic.moved["forward"] == pytest.approx(3 * 4 * x.numel(), rel=0.1)
    assert traffic.moved["backward"] >= 5 * 4 * x.numel()


def counted(estimate, name="mask_head"):
    row = {"name": name, "bound_us": 1.0, "estimate_us": estimate, "serial_us": 9.0}
    part = {"bound_us": 2.0, "estimate_us": 100.0, "serial_us": 18.0, "launches": [row, row]}
    return {"arch": "sm_90", "triton": "3.7.1", "measured": False, "seconds": 3.0, "parts": {"dpt forward": part}}


def test_the_record_tells_which_estimate_grew(tmp_path):
    path = tmp_path / "roofline.json"
    record.write(counted(2.0), path)
    assert json.loads(path.read_text())["parts"]["dpt forward"]["mask_head (2)"] == [1.0, 2.0, 9.0]
    assert record.compare(counted(2.0), path)[1] == 0
    text, grown = record.compare(counted(2.05), path)
    assert (grown, "mask_head: 1.00 / 2.00 / 9.00 -> 1.00 / 2.05 / 9.00\n" in text) == (0, True)
    text, grown = record.compare(counted(2.07), path)
    assert (grown, "SLOWER" in text, "2 estimates grew" in text) == (2, True, True)
    assert record.compare(counted(1.0), path)[1] == 0
    text, grown = record.compare(counted(2.0, "mask"), path)
    assert (grown, "mask: not there -> 1.00" in text) == (0, True)


def test_training_keeps_a_third_of_what_the_textbook_keeps():
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
def test_pipes_of_what_ships():
    """What the tool prints last, and that the tensor cores do what the model asks for, and how much padding."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = "import json; from benchmarks.roofline import tables; found = tables.counted(); tables.print_pipes(found)"
    command = [sys.executable, "-c", f"{code}; print(json.dumps(found))"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, dropout, first, second, written = done.stdout.splitlines()
    figures = r"bound [\d.]+ us, estimate [\d.]+ us, serial [\d.]+ us, [\d,]+ x real time \(sm_90, estimated\)"
    assert re.fullmatch(f"dpt training step with dropout: {figures}", dropout)
    assert re.fullmatch(f"dpt forward: {figures}", first)
    assert re.fullmatch(f"dpt training step: {figures}", second)
    found = json.loads(written)
    assert found["measured"] is False
    for name, frames in (("dpt forward", 256 * 3 / 3.58), ("dpt training step", 126 * 3 / 2)):
        # per frame and band: layers, attention along F and T, decoder; the encoder has 9 x 32 x 128 products a band
        length, bands, channels = (256 if "forward" in name else 126), 65, 128
        layer = 2 * channels * (3 * channels + channels + 2 * 4 * channels)
        attention = 4 * channels * (bands + length) * 2
        asked = frames * bands * (4 * layer + attention + 2 * 9 * 32 * channels + 2 * 9 * channels * 64)
        head = frames * 257 * 64 * 6 * 2  # the upsampling's products that are not zero
        # back: seven products of the feed-forward's size, two of each projection's, five of attention's half; the
        # encoder's input is made of pairs of bands with a quarter of zeros; the head is done three times, and twice
        # each way
        products = 2 * channels * channels * (7 * 4 + 2 + 2 * 3)
        convolutions = (2 + 1 / 3) * 2 * 9 * 32 * channels + 2 * 2 * 9 * channels * 64
        backward = frames * bands * (4 * products + 2.5 * attention + convolutions) + (1 + 2 + 2) * head
        total = asked + head + (backward if name == "dpt training step" else 0)
        part = found["parts"][name]
        assert sum(row["gflop"] for row in part["launches"]) == pytest.approx(total / 1e9, rel=1e-6)
        assert part["estimate_us"] == pytest.approx(sum(row["estimate_us"] for row in part["launches"]))
        for row in part["launches"]:
            assert row["bound_us"] <= row["estimate_us"] <= row["serial_us"], row["name"]
            # padding: attention 1.52 (65 bands as 80); the encoder 1.39 (96 values as 128), times the frames that
            # chunks of 8 read at both sides
            allowed = 15 if "mask_head" in row["name"] or "moments" in row["name"] else 1.86
            assert row["gflop"] * 0.999 <= row["tensor_gflop"] <= allowed * max(row["gflop"], 1e-9), row["name"]


@pytest.mark.slow
def test_every_kernel_compiles_without_spills():
    """The gate, in processes of its own: here the kernels are interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    command = [sys.executable, "-m", "benchmarks.roofline", "--arch"]
    arches = ("sm_80", "sm_90", "sm_120")  # the others take the configurations of one of them
    gates = [(arch, subprocess.Popen([*command, arch], **options)) for arch in arches]
    for arch, gate in gates:
        said = gate.communicate()[0]
        assert gate.returncode == 0, said
        assert "every kernel passes the gate" in said
        assert said.count(arch) >= 3 * 55


def test_what_fails_the_gate():
    """Shared memory that the chip does not have, spills, a product without tensor cores: each by what the chip is."""
    sound = Cubin(arch=90, registers=255, spills=0, shared=232_448, tensor_core=1, multiplies=True, sass="")
    assert sound.faults() == []
    assert replace(sound, spills=1).faults() == ["1 spill instructions"]
    assert replace(sound, tensor_core=0).faults() == ["no tensor-core instruction"]
    for arch, most in ((86, 101_376), (89, 101_376), (120, 101_376), (80, 166_912), (100, 232_448)):
        assert replace(sound, arch=arch, shared=most).faults() == []
        assert len(replace(sound, arch=arch, shared=most + 1).faults()) == 1
    assert replace(sound, arch=80, shared=1, spills=1).faults()
    opcodes = "HMMA.16816.F32.BF16 R4, R8, R10, R4 ; HGMMA.64x64x16.F32 R24 ; UTCHMMA gdesc[UR6] ; IMMA R1"
    assert len(_TENSOR_CORE.findall(opcodes)) == 3


def test_options_that_do_not_go_together():
    for options in (["--compare", "--record"], ["--pipes", "--arch", "sm_80"]):
        command = [sys.executable, "-m", "benchmarks.roofline", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
