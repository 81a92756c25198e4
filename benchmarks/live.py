"""Latency of live sound, a hop of 16 ms at a time on one thread: python -m benchmarks.live [--seconds 60]

Each row is a form (``FORMS``): seconds for each hop by the clock and by the processor's time of the thread, which other
work on the machine disturbs less. A hop must be done in 16 ms. Figures to publish are taken while the machine does
nothing else.
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fastenh import Enhancer
from fastenh.models import checkpoint
from fastenh.models.export import export_live
from fastenh.models.frontend import SAMPLE_RATE, SpectralModel
from fastenh.models.live import HOP

NAME = "dpt_complex-live"
Step = Callable[[np.ndarray], object]  # takes the sound of one hop (channels, n)
_EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "enhance_live_onnx.py"
_WARM = 150  # hops before the clock counts: by then the attention sees its whole history


def pytorch_step(model: SpectralModel) -> Step:
    """The model alone."""
    enhancer = Enhancer(model, "cpu")
    assert enhancer.live_model is not None
    live, state = enhancer.live_model, [enhancer.live_model.start()]

    def step(block: np.ndarray) -> None:
        _, state[0] = live(torch.from_numpy(block), state[0])

    return step


def enhancer_step(rate: int, channels: int = 1, bandwidth: str = "full") -> Callable[[SpectralModel], Step]:
    """All of ``Enhancer.live``: offset, rates, upper band."""
    return lambda model: Enhancer(model, "cpu", bandwidth=bandwidth).live(rate, channels).feed


def onnx_step(model: SpectralModel) -> Step:
    """The model alone, as ``fastenh export --live`` writes it, driven as by the example, which copies the state."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = export_live(model, {}).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    step = runpy.run_path(str(_EXAMPLE))["Step"](session)

    def hops(block: np.ndarray) -> None:
        for samples in block[0].reshape(-1, HOP):
            step(samples)

    return hops


# what is measured: (name, samples a second, channels, how to make a step)
FORMS: list[tuple[str, int, int, Callable[[SpectralModel], Step]]] = [
    ("PyTorch, the model alone", SAMPLE_RATE, 1, pytorch_step),
    ("onnxruntime, the model alone", SAMPLE_RATE, 1, onnx_step),
    ("PyTorch, Enhancer.live", SAMPLE_RATE, 1, enhancer_step(SAMPLE_RATE)),
    ("PyTorch, Enhancer.live", 48_000, 1, enhancer_step(48_000)),
    ("PyTorch, Enhancer.live", 48_000, 2, enhancer_step(48_000, 2)),
]


def measure(step: Step, rate: int, channels: int, hops: int, size: int = 1) -> np.ndarray:
    """(2, calls): milliseconds of clock and of processor for each call with ``size`` hops."""
    frames = size * HOP * rate // SAMPLE_RATE
    sound = (0.1 * np.random.default_rng(0).standard_normal((channels, 8 * frames))).astype(np.float32)
    taken = []
    for number in range((_WARM + hops) // size):
        block = sound[:, number % 8 * frames :][:, :frames]
        began, used = time.perf_counter(), time.thread_time()
        step(block)
        taken.append((time.perf_counter() - began, time.thread_time() - used))
    return 1000 * np.array(taken[_WARM // size :]).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of sound, for each row")
    parser.add_argument("--model", default=NAME, help="a causal model: shipped, or a checkpoint")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, hops = checkpoint.load(options.model)[0], round(options.seconds * SAMPLE_RATE / HOP)
    print("| ms a hop, one thread | Hz | channels | p50 | p95 | p99 | worst | processor p50 | p95 | p99 | of 64 |")
    print(f"|{'---|' * 11}")
    for name, rate, channels, make in FORMS:
        wall, used = measure(make(model), rate, channels, hops)
        _, many = measure(make(model), rate, channels, hops, 64)
        figures = [*np.percentile(wall, [50, 95, 99, 100]), *np.percentile(used, [50, 95, 99]), many.mean() / 64]
        print(f"| {name} | {rate} | {channels} | {' | '.join(f'{figure:.2f}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    main()
