"""Memory of a job over one long recording: python -m benchmarks.memory [--hours 10] [--model dpt|stub]

Prints, for each tenth of the recording, the memory of the process beyond what it had with the model loaded and one
window done. "stub" is a network that halves the spectrum: hours pass in minutes, and all but the network is the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

from fastenh import Enhancer
from fastenh.enhance import job, layout
from fastenh.enhance.enhancer import SAMPLE_RATE
from fastenh.models import checkpoint
from fastenh.models.frontend import SpectralModel


class Halved(nn.Module):
    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        return 0.5 * spectrum


class Curve(job.Meter):
    """Notes the memory at each tenth."""

    def __init__(self, tasks: list[layout.Task], seconds: float) -> None:
        super().__init__(tasks)
        self.seconds, self.rows = seconds, [(0.0, resident())]

    def add(self, audio_seconds: float, size: float) -> None:
        super().add(audio_seconds, size)
        if self.audio_seconds >= len(self.rows) * self.seconds / 10:
            self.rows.append((self.audio_seconds / 3600, resident()))


def resident() -> float:
    """MB of memory in use."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--model", choices=["dpt", "stub"], default="stub")
    options = parser.parse_args()
    model = checkpoint.load("dpt")[0] if options.model == "dpt" else SpectralModel(Halved(), 256)
    enhancer, minute = Enhancer(model, "cpu"), 0.1 * np.random.default_rng(0).standard_normal(60 * SAMPLE_RATE)
    enhancer(minute[: enhancer.spans.window], SAMPLE_RATE)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "long.wav"), Path(folder, "out.wav")
        with soundfile.SoundFile(source, "w", SAMPLE_RATE, 1) as file:
            for _ in range(round(options.hours * 60)):
                file.write(minute)
        task, began = layout.Task(source, target), time.perf_counter()
        curve = Curve([task], options.hours * 3600)
        (result,) = job.run([task], enhancer, meter=curve)
        assert soundfile.info(target).frames == soundfile.info(source).frames, result
    print("| hours |", " | ".join(f"{hours:.2f}" for hours, _ in curve.rows), "|")
    print("|" + "---|" * (len(curve.rows) + 1))
    print("| MB more |", " | ".join(f"{mb - curve.rows[0][1]:.0f}" for _, mb in curve.rows), "|")
    print(f"{curve.rows[0][1]:.0f} MB at the start; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
