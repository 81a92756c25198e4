"""Time for a hop of live sound in onnxruntime, on one thread: python -m benchmarks.live_onnx

A hop is 16 ms of sound. Given twice: by the wall clock, and as processor time of the thread, which leaves out what
other programs take away. The hops follow each other without a pause, noise after noise, and the rings are full.
"""

from __future__ import annotations

import argparse
import runpy
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "enhance_live_onnx.py"
PERCENTILES = 50, 95, 99


def fresh_step(path: Path) -> None:
    """Write the step of a model of the shipped shape, with weights that nobody trained: they cost the same."""
    import torch

    from fastenh.models.dpt_complex import DPTComplexConfig
    from fastenh.models.export import export_live
    from fastenh.models.registry import build

    torch.manual_seed(0)
    model = build("dpt_complex", DPTComplexConfig(causal=True, history=128)).eval()
    path.write_bytes(export_live(model, {"model": "fresh"}).SerializeToString())


def measure(path: Path, hops: int) -> dict[str, list[float]]:
    """Milliseconds a hop of each clock, the copies of the state included."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    step = runpy.run_path(str(EXAMPLE))["Step"](session)
    noise = (0.1 * np.random.default_rng(0).standard_normal((hops, 256))).astype(np.float32)
    clocks = {"wall clock": time.perf_counter, "processor": time.thread_time}
    taken: dict[str, list[float]] = {name: [] for name in clocks}
    for samples in noise[:200]:
        step(samples)
    for samples in noise:
        began = [clock() for clock in clocks.values()]
        step(samples)
        for (name, clock), start in zip(clocks.items(), began, strict=True):
            taken[name].append(1000 * (clock() - start))
    return taken


def table(taken: dict[str, list[float]]) -> str:
    lines = ["| ms a hop | p50 | p95 | p99 | real-time factor |", "|---|---|---|---|---|"]
    for name, values in taken.items():
        figures = " | ".join(f"{np.percentile(values, percentile):.2f}" for percentile in PERCENTILES)
        lines.append(f"| {name} | {figures} | {np.mean(values) / 16:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model or a checkpoint; fresh weights unless given")
    parser.add_argument("--hops", type=int, default=5000)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = Path(folder, "step.onnx")
        if options.model is None:
            fresh_step(path)
        else:
            from fastenh.models import checkpoint
            from fastenh.models.export import export_live

            path.write_bytes(export_live(checkpoint.load(options.model)[0], {}).SerializeToString())
        print(f"{path.stat().st_size / 1e6:.2f} MB")
        print(table(measure(path, options.hops)))


if __name__ == "__main__":
    main()
