"""What ships, counted: every launch of the windows that are enhanced and of the steps of the recipes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import triton

from benchmarks.roofline.cubins import Cubin, code_of, compile_launch
from benchmarks.roofline.pipes import DRAM_BYTES_S, PIPES, Usage, usage
from benchmarks.roofline.shipped import FORWARD, WINDOWS, Work, forward_launches
from benchmarks.traffic import Traffic, step_launches, step_traffic, window_traffic, work_of
from fastenh.train.recipe import load_recipe
from fastenh_kernels.shared.launch import Launch

SECONDS = 3.0  # of audio that every figure is for
FIGURES = ("bound_us", "estimate_us", "serial_us")
STEPS = {
    "dpt training step": ("dpt-mix",),
    "dpt training step with dropout": ("dpt",),
    "dpt_complex training step": ("dpt_complex",),
    "dpt_complex training step of 32 crops of 4 s": ("dpt_complex", "data.batch_size=32", "data.seconds=4"),
}  # a recipe and what is changed in it
Row = dict[str, Any]


def counted() -> dict[str, Any]:
    """Every launch of what ships, for 3 s of audio, with its three figures; and their sums."""
    parts = {}
    for model in FORWARD:
        launches = forward_launches(torch.bfloat16, WINDOWS, model=model)
        parts[f"{model} forward"] = _rows(launches, WINDOWS, window_traffic(WINDOWS, model))
    for name, (base, *changes) in STEPS.items():
        recipe = load_recipe(base, changes)
        parts[name] = _rows(step_launches(recipe), work_of(recipe), step_traffic(recipe))
    return {"arch": "sm_90", "triton": triton.__version__, "measured": False, "seconds": SECONDS} | {
        "parts": {name: _sums(rows) | {"launches": rows} for name, rows in parts.items()}
    }


def _rows(launches: Iterable[tuple[str, Launch]], work: Work, traffic: Traffic) -> list[Row]:
    share = SECONDS / (work.clips * work.seconds)
    rows = [_of_launch(*step, share) for step in pipe_usage(launches, share)]
    return rows + [_of_pytorch(part, moved * share, traffic.calls[part]) for part, moved in traffic.moved.items()]


def _of_launch(name: str, launch: Launch, use: Usage, share: float) -> Row:
    row: Row = {"name": name, "kernel": launch.kernel.fn.__name__, "programs": launch.programs}
    row |= {"gflop": launch.cost.flop * share / 1e9, "tensor_gflop": use.tensor_flop / 1e9}
    row |= {"megabytes": use.dram_bytes / 1e6, "pipes_us": use.microseconds, "busiest": use.busiest}
    return row | {"bound_us": use.bound, "estimate_us": use.estimate, "serial_us": use.serial}


def _of_pytorch(part: str, moved: float, calls: int) -> Row:
    """PyTorch's own operations in a part of the work: what they move, at the rate of DRAM."""
    us = moved / DRAM_BYTES_S["H200"] * 1e6
    row: Row = {"name": f"PyTorch, {part}", "kernel": "", "operations": calls, "gflop": 0.0}
    row |= {"tensor_gflop": 0.0, "megabytes": moved / 1e6, "pipes_us": {"dram": us}, "busiest": "dram"}
    return row | dict.fromkeys(FIGURES, us)


def _sums(rows: list[Row]) -> dict[str, float]:
    sums = {figure: sum(row[figure] for row in rows) for figure in FIGURES}
    return sums | {"x_realtime": SECONDS * 1e6 / sums["estimate_us"]}


def table(name: str, part: dict[str, Any]) -> Iterator[str]:
    """Lines: equal launches once, with their number."""
    columns = "".join(f" {pipe[:8]:>8}" for pipe in PIPES)
    yield f"\n{name}: microseconds for {SECONDS:g} s of audio, bfloat16"
    yield f"{'launch':54} {'GFLOP':>6} {'padded':>6}{columns} {'bound':>7} {'estimate':>8} {'serial':>7}"
    lines = []
    for row in part["launches"]:
        padded = row["tensor_gflop"] / row["gflop"] if row["gflop"] else 1
        pipes = "".join(f" {row['pipes_us'].get(pipe, 0):8.2f}" for pipe in PIPES)
        figures = f"{row['bound_us']:7.2f} {row['estimate_us']:8.2f} {row['serial_us']:7.2f}"
        lines.append((_label(row), f"{row['gflop']:6.2f} {padded:6.2f}{pipes} {figures}"))
    for (label, figures), times in Counter(lines).items():
        yield f"{label + (f', {times} times' if times > 1 else ''):54} {figures}"


def _label(row: Row) -> str:
    """Layers of one axis are alike."""
    if "operations" in row:
        return f"{row['name']} ({row['operations']} operations)"
    return re.sub(r"^layer \d", "layer", row["name"])


def total(name: str, part: dict[str, Any]) -> str:
    return (
        f"{name}: bound {part['bound_us']:.1f} us, estimate {part['estimate_us']:.1f} us, "
        f"serial {part['serial_us']:.1f} us, {part['x_realtime']:,.0f} x real time (sm_90, estimated)"
    )


def print_pipes(found: dict[str, Any]) -> None:
    """The tables, then their sums: a model's forward pass and the step of its recipe one after the other."""
    print(f"triton {found['triton']}, sm_90, estimated, not measured")
    parts = found["parts"]
    for name, part in reversed(parts.items()):
        print("\n".join(table(name, part)))
    for model in FORWARD:
        for name in (name for name in parts if name.split()[0] == model):
            print(total(name, parts[name]))


def pipe_usage(launches: Iterable[tuple[str, Launch]], share: float) -> Iterator[tuple[str, Launch, Usage]]:
    """Name, launch and pipes of every launch on sm_90, times ``share``."""
    cubins: dict[str, Cubin] = {}
    for name, launch in launches:
        key = code_of(launch)
        if key not in cubins:
            cubins[key] = compile_launch(launch, 90)
        yield name, launch, usage(cubins[key].sass, launch, share)
