"""One run on a GPU: parity first, then every operation and the model, or its training step, beside their rivals.

usage: python -m benchmarks.gpu [--minutes 7] [-o FILE]        writes benchmarks/results/DEVICE.json, prints the table
       python -m benchmarks.gpu --part training [...]          writes benchmarks/results/DEVICE-training.json
       python -m benchmarks.gpu --table FILE                   prints the table of a run, the estimates in it
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from benchmarks.cases import (
    CLIP_SECONDS,
    GPU_IMPLEMENTATIONS,
    TIMED,
    TIMED_IN_TRAINING,
    TrainingStep,
    arguments,
    conditions,
    dtype_of,
    fastest_sdpa,
    fits,
    forward_backward,
    model,
    operation,
    spectrum,
)

RESULTS = Path(__file__).parent / "results"
OPERATION_CLIPS = 64
MODEL_CLIPS = (1, 16, 64, 128, 256)
TRAINING_CLIPS = (64, 16, 8)
BOTH = " forward+backward"  # after the name of an operation
QUANTILES = (0.2, 0.5, 0.8)
# distance to the reference in float32, relative: as in tests/parity.py, with room for its own rounding
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
# of a gradient: as in fastenh_kernels/proof.py; a unit within rounding of zero opens on one side alone
GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.15}
Row = dict[str, Any]


class ParityError(RuntimeError):
    """A kernel is not equal to the reference: no speed is reported."""


def quantiles(function: Callable[[], object]) -> tuple[float, float, float]:
    """Milliseconds, caches flushed before each call."""
    from triton.testing import do_bench

    return tuple(do_bench(function, warmup=50, rep=200, quantiles=list(QUANTILES)))


def check_parity(device: torch.device) -> None:
    """Raises ``ParityError``."""
    for name in TIMED:
        for implementation in ("triton_fp32", "triton_bf16"):
            dtype = dtype_of(implementation)
            given = arguments(name, 2, dtype, device)
            with conditions(implementation, device):
                ours = operation(name, implementation)(*given)
                theirs = operation(name, "eager_fp32")(*tree_map(_float, given))
            difference = (ours.to(theirs.dtype) - theirs).norm() / theirs.norm()
            if not difference <= TOLERANCE[dtype]:
                raise ParityError(f"{name}, {implementation}: {difference:.2e} from the reference")
    given = spectrum(2, device)
    with conditions("eager_fp32", device):
        truth = model("eager_fp32", device)(given)
        for implementation, least in (("triton_fp32", 60), ("triton_bf16", 30)):
            error = model(implementation, device)(given) - truth
            ratio = 20 * torch.log10(truth.norm() / error.norm()).item()
            if not ratio >= least:
                raise ParityError(f"the model, {implementation}: {ratio:.1f} dB from the textbook module")


def _float(value: object) -> object:
    return value.float() if isinstance(value, torch.Tensor) and not value.is_complex() else value


def check_gradient_parity(device: torch.device) -> None:
    """Every operation, then the training step. Raises ``ParityError``."""
    for name in TIMED_IN_TRAINING:
        for implementation in ("triton_fp32", "triton_bf16"):
            dtype = dtype_of(implementation)
            given = arguments(name, 2, dtype, device, training=True)
            with conditions(implementation, device, gradients=True):
                ours = forward_backward(name, implementation, given)()
                theirs = forward_backward(name, "eager_fp32", tree_map(_float, given))()
            for number, (gradient, truth) in enumerate(zip(ours, theirs, strict=True)):
                difference = distance(gradient, truth)
                if not difference <= GRADIENT_TOLERANCE[dtype]:
                    raise ParityError(f"{name}, {implementation}: gradient {number} is off by {difference:.2e}")
    check_step_parity(device)


def check_step_parity(device: torch.device, **size: int) -> None:
    """Gradients of all weights, as one vector, against the reference path in float32. In bfloat16 they may be 1.5 times
    as far away as the reference path in bfloat16 is. Raises ``ParityError``."""

    def gradients(name: str, implementation: str) -> torch.Tensor:
        with conditions(implementation, device, gradients=True):
            step = TrainingStep(name, implementation, 2, device, **size)
            step.differentiate()
        found = (parameter.grad for parameter in step.model.parameters())
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    truth = gradients("train_step_reference", "eager_fp32")
    rounded = distance(gradients("train_step_reference", "eager_bf16_sdpa"), truth)
    limits = {"triton_fp32": GRADIENT_TOLERANCE[torch.float32], "triton_bf16": 1.5 * rounded + 8e-3}
    for implementation, most in limits.items():
        difference = distance(gradients("train_step", implementation), truth)
        if not difference <= most:
            raise ParityError(f"training step, {implementation}: gradient off by {difference:.2e}, not {most:.2e}")


def distance(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Relative to the norm of the truth."""
    return ((ours.to(truth.dtype) - truth).norm() / truth.norm()).item()


def measure(name: str, implementation: str, clips: int, function: Callable[..., object], given: tuple, device) -> Row:
    function(*given)  # what compiles or tunes itself takes memory for that
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    function(*given)
    peak = torch.cuda.max_memory_allocated(device)
    low, mid, high = quantiles(lambda: function(*given))
    return {"name": name, "impl": implementation, "clips": clips, "p20_ms": low, "p50_ms": mid, "p80_ms": high,
            "x_realtime": clips * CLIP_SECONDS * 1e3 / mid, "peak_memory_mb": peak / 2**20}  # fmt: skip


def graphed(function: Callable[..., torch.Tensor], *given: torch.Tensor) -> Callable[[], None]:
    """A CUDA graph of the call, warmed up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*given)
    return graph.replay


def rates(device: torch.device) -> dict[str, float]:
    """What this GPU copies (TB/s, read and written) and multiplies (TFLOP/s, bfloat16), measured."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, 8192, 8192, device=device).to(torch.bfloat16)
    copy, multiply = quantiles(lambda: target.copy_(source))[1], quantiles(lambda: a @ b)[1]
    return {"copy_tb_s": 2 * 2**30 / copy / 1e9, "matmul_tflop_s": 2 * 8192**3 / multiply / 1e9}


def steps(part: str = "forward") -> list[tuple[str, str, int]]:
    """(name, implementation, clips) of all that is measured; last what takes a minute to tune itself."""
    if part == "training":
        return training_steps()
    every = [("model_forward", i, clips) for clips in MODEL_CLIPS for i in GPU_IMPLEMENTATIONS]
    every += [(name, i, OPERATION_CLIPS) for name in TIMED for i in GPU_IMPLEMENTATIONS]
    compiled = [step for step in every if step[1].startswith("compile") and step[2] in (1, OPERATION_CLIPS)]
    return [step for step in every if not step[1].startswith("compile") and fits(*step)] + compiled


def training_steps() -> list[tuple[str, str, int]]:
    """The same of training, the most telling first; CUDA graphs after what a failed capture must not cost."""

    def each(names: Iterable[str], implementations: Iterable[str]) -> list[tuple[str, str, int]]:
        return [(name, i, clips) for clips in TRAINING_CLIPS for name in names for i in implementations]

    told = each(["train_step", "train_step_compile"], ["triton_bf16"]) + each(["train_step"], ["eager_fp32"])
    told += [("train_step", "compile_bf16", max(TRAINING_CLIPS))]
    told += each(["train_step_graph", "train_step_compile_graph"], ["triton_bf16"])
    told += each(["train_step", "train_step_reference"], ["eager_fp32", "eager_bf16_sdpa"])
    told += each(["train_step"], ["triton_fp32", "eager_tf32"])
    operations = [(name + BOTH, i, OPERATION_CLIPS) for name in TIMED_IN_TRAINING for i in GPU_IMPLEMENTATIONS]
    tuned = [step for step in operations if step[1].startswith("compile")]
    tuned += each(["train_step_reference", "train_step"], ["compile_bf16"])
    direct = [step for step in operations if not step[1].startswith("compile") and fits(*step)]
    return list(dict.fromkeys(told + direct + tuned))


def prepare(name: str, implementation: str, clips: int, device: torch.device) -> tuple[Callable[..., Any], tuple]:
    """The function to time, and its inputs."""
    if name == "model_forward":
        return model(implementation, device), (spectrum(clips, device),)
    if name.startswith("train_step"):
        return TrainingStep(name, implementation, clips, device), ()
    dtype = dtype_of(implementation)
    if name.endswith(BOTH):
        name = name.removesuffix(BOTH)
        given = arguments(name, clips, dtype, device, training=True)
        return forward_backward(name, implementation, given), ()
    return operation(name, implementation), arguments(name, clips, dtype, device)


def measure_step(name: str, implementation: str, clips: int, device: torch.device) -> list[Row]:
    gc.collect()  # the step before, its tensors and its graph
    torch.compiler.reset()
    with conditions(implementation, device, gradients=trains(name)):
        function, given = prepare(name, implementation, clips, device)
        if name.endswith("_graph"):
            return [measure_graph(name, implementation, clips, function, given, device)]
        rows = [measure(name, implementation, clips, function, given, device)]
        if name == "model_forward" and clips == 1 and implementation.startswith("triton"):
            rows.append(measure_graph("model_forward_graph", implementation, 1, function, given, device))
    return rows


def trains(name: str) -> bool:
    return name.startswith("train_step") or name.endswith(BOTH)


def measure_graph(name: str, implementation: str, clips: int, function: Callable, given: tuple, device) -> Row:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    replay = graphed(function, *given)
    peak = torch.cuda.max_memory_allocated(device) / 2**20  # replays allocate nothing
    return measure(name, implementation, clips, replay, (), device) | {"peak_memory_mb": peak}


def kernel_times(clips: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Microseconds of each kernel on the GPU by part of an eager step of ours."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    step = TrainingStep("train_step", "triton_bf16", clips, device)
    step()
    times = {}
    for part, run_part in step.parts():
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run_part()
            torch.cuda.synchronize(device)
        events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        times[part] = {event.key: event.self_device_time_total for event in events}
    return times


def shares_of_step(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of the time on the GPU: our kernels, the loss with its backward pass, the optimiser, and all else (batch norms,
    ReLU, STFT, casts, sums of gradients)."""
    parts = {part: sum(kernels.values()) for part, kernels in times.items()}
    ours = sum(us for kernels in times.values() for name, us in kernels.items() if name in our_kernels())
    found = {"kernels": ours, "loss": parts["loss"], "optimiser": parts["optimiser"]}
    total = sum(parts.values())
    return {what: us / total for what, us in (found | {"other": total - sum(found.values())}).items()}


@cache
def our_kernels() -> frozenset[str]:
    from benchmarks.roofline.shipped import CLIPS, training_launches

    launches = training_launches(torch.bfloat16, CLIPS, spectral=False)  # that of the loss counts as the loss
    return frozenset(launch.kernel.fn.__name__ for _, launch in launches)


def run(part: str, minutes: float, clips: int | None, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """``clips``: measure at this number alone. ``save`` is given the result after each step: a run may be cut off."""
    device = torch.device("cuda")
    end = time.monotonic() + 60 * minutes
    training = part == "training"
    (check_gradient_parity if training else check_parity)(device)
    print("parity: passed", flush=True)
    sdpa = fastest_sdpa(device, gradients=training).name
    result = about(device) | rates(device) | {"part": part, "sdpa": sdpa, "rows": [], "left_out": []}
    if training:
        with said("shares of the step", result["left_out"]):
            result["shares_of_step"] = {n: shares_of_step(kernel_times(n, device)) for n in TRAINING_CLIPS}
    for step in steps(part):
        if clips not in (None, step[2]):
            continue
        label = "{}, {}, {} clips".format(*step)
        if time.monotonic() > end:
            result["left_out"].append(f"{label}: out of time")
            continue
        with said(label, result["left_out"]):
            for row in measure_step(*step, device):
                result["rows"].append(row)
                print(json.dumps(result["rows"][-1]), flush=True)
        save(result)
    return result


@contextmanager
def said(label: str, left_out: list[str]) -> Iterator[None]:
    """What cannot run is said, not hidden, and costs no other row."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        left_out.append(f"{label}: {type(error).__name__}: {reason}")


def about(device: torch.device) -> dict[str, Any]:
    import triton

    root = Path(__file__).parent.parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def estimated(part: str = "forward") -> dict[str, dict[str, float]]:
    """Of each name: microseconds by the pipes, bytes and operations, for one clip in bfloat16."""
    from benchmarks.roofline import pipes, shipped, tables

    launches = shipped.training_launches if part == "training" else shipped.forward_launches
    totals: dict[str, dict[str, float]] = defaultdict(lambda: {"estimated_us": 0.0, "bytes": 0.0, "flop": 0.0})
    for name, _, use in tables.pipe_usage(launches(torch.bfloat16, shipped.CLIPS), 1 / shipped.CLIPS.clips):
        for key in rows_of_launch(name, part):
            totals[key]["estimated_us"] += use.estimate
            totals[key]["bytes"] += use.dram_bytes
            totals[key]["flop"] += use.tensor_flop
    if part == "training":
        moved = moved_by_pytorch()
        totals["train_step"]["estimated_us"] += 1e6 * moved / pipes.DRAM_BYTES_S["H200"]
        totals["train_step"]["bytes"] += moved
    return dict(totals)


def moved_by_pytorch() -> float:
    """Bytes a clip that PyTorch's own operations move in ``TrainingStep``."""
    from benchmarks.roofline.shipped import CLIPS
    from benchmarks.traffic import step_traffic
    from fastenh.train.recipe import load_recipe

    settings = (f"data.batch_size={CLIPS.clips}", f"data.seconds={CLIPS.seconds}", "run.ema=0.0")
    moved = step_traffic(load_recipe("dpt-mix", settings)).moved
    return sum(moved[part] for part in ("forward", "loss", "backward", "sums of parts", "optimiser")) / CLIPS.clips


def rows_of_launch(name: str, part: str) -> Iterable[str]:
    """The rows that a launch of ``benchmarks.roofline.shipped`` counts in: of the layers, the first of each axis."""
    operation = name.split(":")[0].removesuffix(" backward")
    layer = re.fullmatch(r"layer (\d), (\w+)", operation)
    if layer:
        operation = f"axis_layer_{layer[2]}"
    whole, suffix = ("train_step", BOTH) if part == "training" else ("model_forward", "")
    return (whole,) if layer and int(layer[1]) > 2 else (whole, operation + suffix)


def with_estimates(result: dict[str, Any]) -> dict[str, Any]:
    """The estimate beside each measurement: compiled and counted where the table is made, not on the GPU's time."""
    estimates = estimated(result["part"])
    return result | {"rows": [row | shares(row, estimates, result) for row in result["rows"]]}


def shares(row: Row, estimates: dict[str, dict[str, float]], result: dict[str, Any]) -> Row:
    """The estimate beside the measurement, and the shares of the copy and multiplication rates of this GPU."""
    found = estimates.get(row["name"].removesuffix("_graph").removesuffix("_compile"))
    if not found or not row["impl"].endswith("triton_bf16"):
        return {}
    total = {key: value * row["clips"] for key, value in found.items()}
    seconds = row["p50_ms"] / 1e3
    return total | {
        "share_of_copy": total["bytes"] / seconds / 1e12 / result["copy_tb_s"],
        "share_of_matmul": total["flop"] / seconds / 1e12 / result["matmul_tflop_s"],
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: milliseconds a clip by each implementation at its best number of clips."""
    lines = [f"{result['device']}, torch {result['torch']}, triton {result['triton']}, commit {result['commit']}, "
             f"{result['date']}; copies at {result['copy_tb_s']:.2f} TB/s, multiplies at "
             f"{result['matmul_tflop_s']:.0f} TFLOP/s (bfloat16). Microseconds for a clip of 3 s, median.",
             "", "| | " + " | ".join(GPU_IMPLEMENTATIONS) + " | estimate | x real time |",
             "|---" * (len(GPU_IMPLEMENTATIONS) + 3) + "|"]  # fmt: skip
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        cells, estimate, realtime = [], "", ""
        for implementation in GPU_IMPLEMENTATIONS:
            rows = [row for row in result["rows"] if (row["name"], row["impl"]) == (name, implementation)]
            best = min(rows, key=lambda row: row["p50_ms"] / row["clips"], default=None)
            cells.append(f"{1e3 * best['p50_ms'] / best['clips']:.1f} ({best['clips']})" if best else "-")
            if best and "estimated_us" in best:
                estimate = f"{best['estimated_us'] / best['clips']:.1f}"
            if best and implementation == "triton_bf16":
                realtime = f"{best['x_realtime']:,.0f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {estimate} | {realtime} |")
    lines += step_table([row for row in result["rows"] if row["name"].startswith("train_step")])
    for clips, parts in result.get("shares_of_step", {}).items():
        found = ", ".join(f"{what} {share:.0%}" for what, share in parts.items())
        lines += ["", f"time on the GPU, train_step, triton_bf16, {clips} clips: {found}"]
    lines += ["", *(f"left out: {what}" for what in result["left_out"])]
    return "\n".join(lines)


def step_table(rows: list[Row]) -> list[str]:
    """Markdown: every training step by itself, with its memory."""
    if not rows:
        return []
    lines = ["", "| training step | implementation | clips | ms | us a clip | estimate | x real time | peak MB |",
             "|---" * 8 + "|"]  # fmt: skip
    for row in rows:
        clip, estimate = 1e3 * row["p50_ms"] / row["clips"], row.get("estimated_us")
        figures = (
            f"{row['p50_ms']:.2f}",
            f"{clip:.1f}",
            f"{estimate / row['clips']:.1f}" if estimate else "",
            f"{row['x_realtime']:,.0f}",
            f"{row['peak_memory_mb']:,.0f}",
        )
        lines.append(f"| {row['name']} | {row['impl']} | {row['clips']} | " + " | ".join(figures) + " |")
    return lines


def _default_path(part: str) -> Path:
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    return RESULTS / f"{name}{'-training' * (part == 'training')}.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("forward", "training"), default="forward")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin nothing new after this long")
    parser.add_argument("--clips", type=int, help="measure at this number of clips alone")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/DEVICE[-training].json")
    parser.add_argument("--table", type=Path, help="print the table of an earlier run")
    options = parser.parse_args()
    if options.table:
        print(table(with_estimates(json.loads(options.table.read_text(encoding="utf-8")))))
        return 0
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs CUDA; for the CPU: pytest benchmarks --benchmark-only", file=sys.stderr)
        return 1
    path = options.output or _default_path(options.part)
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(result: dict[str, Any]) -> None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    try:
        result = run(options.part, options.minutes, options.clips, save)
    except ParityError as error:
        print(f"parity: {error}; nothing is timed", file=sys.stderr)
        return 1
    save(result)
    print(table(result))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
