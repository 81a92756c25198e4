"""Benchmarks: pytest benchmarks --benchmark-only. Without CUDA they measure the CPU, on one thread."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


@pytest.fixture
def timed(benchmark, device):
    """Times a call, on CUDA up to the end of its kernels; says how many times faster than real time it is."""

    def run(function, *arguments, clips: int, seconds: float = 3.0, cpu_rounds: int = 5):
        def call():
            result = function(*arguments)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return result

        benchmark.extra_info["device"] = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, 1 thread"
        )
        rounds, warmup = (cpu_rounds, min(2, cpu_rounds)) if device.type == "cpu" else (30, 2)
        result = benchmark.pedantic(call, rounds=rounds, warmup_rounds=warmup)
        benchmark.extra_info["x_realtime"] = round(clips * seconds / benchmark.stats.stats.median, 1)
        return result

    return run
