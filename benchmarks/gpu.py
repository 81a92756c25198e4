"""One run on a GPU: parity first, then every operation and the model beside their rivals.

usage: python benchmarks/gpu.py [--minutes 8] [-o FILE]        writes benchmarks/results/DEVICE.json, prints the table
       python benchmarks/gpu.py --table FILE                   prints the table of a run
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import (
    CLIP_SECONDS,
    GPU_IMPLEMENTATIONS,
    OPERATIONS,
    arguments,
    conditions,
    dtype_of,
    fastest_sdpa,
    fits,
    model,
    operation,
    spectrum,
)

RESULTS = Path(__file__).parent / "results"
OPERATION_CLIPS = 64
MODEL_CLIPS = (1, 16, 64, 128, 256)
QUANTILES = (0.2, 0.5, 0.8)
# distance to the reference in float32, relative: as in tests/test_kernels.py, with room for its own rounding
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
Row = dict[str, Any]


class ParityError(RuntimeError):
    """A kernel is not equal to the reference: no speed is reported."""


def quantiles(function: Callable[[], object]) -> tuple[float, float, float]:
    """Milliseconds, caches flushed before each call."""
    from triton.testing import do_bench

    return tuple(do_bench(function, warmup=50, rep=200, quantiles=list(QUANTILES)))


def check_parity(device: torch.device) -> None:
    """Raises ``ParityError``."""
    for name in OPERATIONS:
        for implementation in ("triton_fp32", "triton_bf16"):
            dtype = dtype_of(implementation)
            given = arguments(name, 2, dtype, device)
            with conditions(implementation, device):
                ours = operation(name, implementation)(*given)
                theirs = operation(name, "eager_fp32")(*(_float(value) for value in given))
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
    if isinstance(value, torch.Tensor):
        return value if value.is_complex() else value.float()
    return type(value)(*map(_float, value)) if isinstance(value, tuple) else value


def measure(name: str, implementation: str, clips: int, function: Callable[..., object], given: tuple, device) -> Row:
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


def steps() -> list[tuple[str, str, int]]:
    """(name, implementation, clips) of all that is measured; last what takes a minute to tune itself."""
    every = [("model_forward", i, clips) for clips in MODEL_CLIPS for i in GPU_IMPLEMENTATIONS]
    every += [(name, i, OPERATION_CLIPS) for name in OPERATIONS for i in GPU_IMPLEMENTATIONS]
    compiled = [step for step in every if step[1].startswith("compile") and step[2] in (1, OPERATION_CLIPS)]
    return [step for step in every if not step[1].startswith("compile") and fits(*step)] + compiled


def prepare(name: str, implementation: str, clips: int, device: torch.device) -> tuple[Callable[..., Any], tuple]:
    """The function to time, and its inputs."""
    if name == "model_forward":
        return model(implementation, device), (spectrum(clips, device),)
    return operation(name, implementation), arguments(name, clips, dtype_of(implementation), device)


def measure_step(name: str, implementation: str, clips: int, device: torch.device) -> list[Row]:
    with conditions(implementation, device):
        function, given = prepare(name, implementation, clips, device)
        rows = [measure(name, implementation, clips, function, given, device)]
        if name == "model_forward" and clips == 1 and implementation.startswith("triton"):
            rows.append(measure("model_forward_graph", implementation, 1, graphed(function, *given), (), device))
    return rows


def run(minutes: float) -> dict[str, Any]:
    device = torch.device("cuda")
    end = time.monotonic() + 60 * minutes
    check_parity(device)
    print("parity: passed", flush=True)
    result = about(device) | rates(device) | {"sdpa": fastest_sdpa(device).name, "rows": [], "left_out": []}
    estimates = estimated()
    for step in steps():
        label = "{}, {}, {} clips".format(*step)
        if time.monotonic() > end:
            result["left_out"].append(f"{label}: out of time")
            continue
        try:
            rows = measure_step(*step, device)
        except (RuntimeError, torch.OutOfMemoryError) as error:  # a rival that cannot: said, not hidden
            result["left_out"].append(f"{label}: {str(error).splitlines()[0][:200]}")
            continue
        for row in rows:
            result["rows"].append(row | shares(row, estimates, result))
            print(json.dumps(result["rows"][-1]), flush=True)
    return result


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


def estimated() -> dict[str, dict[str, float]]:
    """Of each name: microseconds by the pipes, bytes and operations, for one clip in bfloat16."""
    from fastenh_kernels.cubins import forward_usage

    totals: dict[str, dict[str, float]] = {}
    for name, _, use in forward_usage():
        axis = re.search(r"layer [12], (\w+)", name)  # a layer of each axis
        part = f"axis_layer_{axis[1]}" if axis else name.split(":")[0]
        for key in {part, "model_forward"}:
            total = totals.setdefault(key, {"estimated_us": 0.0, "bytes": 0.0, "flop": 0.0})
            total["estimated_us"] += use.estimate
            total["bytes"] += use.dram_bytes
            total["flop"] += use.tensor_flop
    return totals


def shares(row: Row, estimates: dict[str, dict[str, float]], result: dict[str, Any]) -> Row:
    """The estimate beside the measurement, and the shares of the copy and multiplication rates of this GPU."""
    found = estimates.get(row["name"].removesuffix("_graph"))
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
    lines += ["", *(f"left out: {what}" for what in result["left_out"])]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.0, help="begin nothing new after this long")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/DEVICE.json")
    parser.add_argument("--table", type=Path, help="print the table of an earlier run")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs CUDA; for the CPU: pytest benchmarks --benchmark-only", file=sys.stderr)
        return 1
    try:
        result = run(options.minutes)
    except ParityError as error:
        print(f"parity: {error}; nothing is timed", file=sys.stderr)
        return 1
    path = options.output or RESULTS / (re.sub(r"\W+", "-", result["device"]).strip("-").lower() + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
