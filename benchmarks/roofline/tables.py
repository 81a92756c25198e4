"""The pipes of the forward pass and of a training step, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.roofline.cubins import Cubin, code_of, compile_launch
from benchmarks.roofline.pipes import DRAM_BYTES_S, PIPES, Usage, usage
from benchmarks.roofline.shipped import STEP_MEGABYTES, forward_launches, training_launches
from fastenh_kernels.shared.launch import Launch

CLIPS = 64  # of the batch that the pipes are counted for
_CLIP_SECONDS = 3


def print_pipes(path: str | None) -> None:
    """Print the tables of the forward pass and of the training step; write them to ``path``, too."""
    print(f"triton {triton.__version__}; microseconds for a 3 s clip in a large batch, bfloat16, sm_90, estimated")
    forward = _table(pipe_usage(forward_launches(torch.bfloat16, CLIPS)))
    training = _table(pipe_usage(training_launches(torch.bfloat16, CLIPS)))
    training += [_of_pytorch(part, megabytes) for part, megabytes in STEP_MEGABYTES.items()]
    if path:
        summary = {"arch": "sm_90", "triton": triton.__version__, "measured": False, "clip_seconds": _CLIP_SECONDS}
        summary |= {"forward": _sum(forward), "training_step": _sum(training)}
        Path(path).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name, rows in (("forward", forward), ("training step", training)):
        total = _sum(rows)
        print(
            f"{name}: bound {total['bound_us']:.1f} us, estimate {total['estimated_us']:.1f} us, "
            f"{total['x_realtime']:,.0f} x real time (sm_90, estimated)"
        )


def _table(steps: Sequence[tuple[str, Launch, Usage]]) -> list[dict[str, Any]]:
    """Print a line for each launch; returns the same."""
    columns = "".join(f" {pipe[:8]:>8}" for pipe in PIPES)
    print(f"{'launch':52} {'GFLOP':>6} {'padded':>6}{columns} {'H100dram':>8} {'bound':>8} {'estimate':>8}")
    rows = []
    for name, launch, use in steps:
        asked = launch.cost.flop / CLIPS
        times = (*(use.microseconds[pipe] for pipe in PIPES), use.dram_h100, use.bound, use.estimate)
        figures = f"{asked / 1e9:6.2f} {use.tensor_flop / asked if asked else 1:6.2f}"
        print(f"{name:52} {figures}{''.join(f' {us:8.2f}' for us in times)}", flush=True)
        row = {"name": name, "kernel": launch.kernel.fn.__name__, "flop": asked, "tensor_flop": use.tensor_flop}
        row |= {"dram_bytes": use.dram_bytes, "pipes_us": use.microseconds, "bound_us": use.bound}
        rows.append(row | {"busiest": use.busiest, "estimated_us": use.estimate})
    return rows


def _of_pytorch(part: str, megabytes: float) -> dict[str, Any]:
    """A line for PyTorch's own operations in a part of the step: what they move, at the rate of DRAM."""
    us = 1e12 * megabytes / DRAM_BYTES_S["H200"]
    print(f"{'PyTorch, ' + part:52} {megabytes:6.2f} MB{us:97.2f}{us:18.2f}{us:9.2f}")
    row = {"name": f"PyTorch, {part}", "kernel": "", "flop": 0.0, "tensor_flop": 0.0, "dram_bytes": 1e6 * megabytes}
    return row | {"pipes_us": {"dram": us}, "bound_us": us, "busiest": "dram", "estimated_us": us}


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    bound, estimate = (sum(row[key] for row in rows) for key in ("bound_us", "estimated_us"))
    realtime = _CLIP_SECONDS * 1e6 / estimate
    return {"bound_us": bound, "estimated_us": estimate, "x_realtime": realtime, "launches": rows}


def pipe_usage(launches: Iterable[tuple[str, Launch]]) -> list[tuple[str, Launch, Usage]]:
    """Name, launch and pipes of every launch, for one of ``CLIPS`` clips of 3 s, on sm_90."""
    cubins: dict[str, Cubin] = {}
    steps = []
    for name, launch in launches:
        key = code_of(launch)
        if key not in cubins:
            cubins[key] = compile_launch(launch, 90)
        steps.append((name, launch, usage(cubins[key].sass, launch, 1 / CLIPS)))
    return steps
