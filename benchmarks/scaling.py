"""What a folder job spends its time on, and how it grows with workers: python -m benchmarks.scaling

Two tables. Stages: processor seconds for an hour of audio in one thread, by stage; what is left of the whole is copies
and bookkeeping. Workers: files a second of whole jobs, in threads of one process (--threads), in several processes that
share the output folder, and with --engine ray where Ray is installed. The start of Python, of the model and of Ray is
left out: the rate is that between the first outputs and the last. The model "tiny" has random weights and next to no
cost, so that what is not the model shows.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from fastenh import Enhancer
from fastenh.audio import files
from fastenh.audio.resampling import Resampler
from fastenh.models import checkpoint
from fastenh.models.frontend import SAMPLE_RATE
from fastenh.models.registry import build, make_config

HOUR = 3600
TINY = "stft_transformer", {"channels": [2, 2, 4], "heads": 1, "feed_forward": 4, "layers": 1}


def make(folder: Path, count: int, seconds: float, rate: int, ending: str) -> None:
    """Noise in syllables."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    envelope = np.clip(np.sin(2 * np.pi * 3 * np.arange(int(seconds * rate)) / rate) + 0.4, 0, 1)
    for index in range(count):
        samples = 0.1 * generator.standard_normal(envelope.size) * envelope
        soundfile.write(folder / f"{index:04}.{ending}", samples, rate)


def stages(path: Path, model: str, dtype: str) -> dict[str, float]:
    """Processor seconds for an hour of audio."""
    torch.set_num_threads(1)
    enhancer = Enhancer.from_pretrained(model, "cpu", dtype)
    with files.reading(path) as reader:
        blocks, encoding = list(reader.blocks()), reader.encoding
    frames = sum(block.shape[1] for block in blocks)
    window, low = enhancer.spans.window, frames * SAMPLE_RATE // encoding.sample_rate
    kept = enhancer.spans.span / SAMPLE_RATE  # seconds that a window delivers

    def read() -> None:
        with files.reading(path) as reader:
            for _ in reader.blocks():
                pass

    def resample() -> None:
        for before, after, size in (
            (encoding.sample_rate, SAMPLE_RATE, frames),
            (SAMPLE_RATE, encoding.sample_rate, low),
        ):
            Resampler(before, after, 1).feed(np.zeros((1, size), np.float32), last=True)

    def run() -> None:
        enhancer.run([np.zeros(window, np.float32) + 0.1])

    def write() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            files.writing(Path(folder, path.name), encoding, frames) as writer,
        ):
            for block in blocks:
                writer.write(block)

    def whole() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            files.reading(path) as reader,
            files.writing(Path(folder, path.name), encoding, frames) as writer,
        ):
            for block in enhancer.stream(reader.blocks(), encoding.channels, encoding.sample_rate):
                writer.write(block)

    seconds = frames / encoding.sample_rate
    measured = {"reading": read, "resampling": resample, "model": run, "writing": write, "whole": whole}
    return {name: quickest(action) * HOUR / (kept if action is run else seconds) for name, action in measured.items()}


def quickest(action: Callable[[], None], turns: int = 5) -> float:
    action()
    times = []
    for _ in range(turns):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)


def commands(folder: Path, model: str, dtype: str, workers: int) -> Iterator[tuple[str, list[list[str]]]]:
    """How the job runs, and the processes that run it."""
    base = [sys.executable, "-m", "fastenh", "enhance", str(folder), "-q", "--model", model, "--dtype", dtype]
    yield "threads", [[*base, "--threads", str(workers)]]
    yield "processes", [[*base, "--threads", "1"]] * workers
    if importlib.util.find_spec("ray"):
        yield "Ray", [[*base, "--engine", "ray", "--workers", str(workers)]]


def rate(processes: list[list[str]], out: Path, workers: int) -> float:
    """Files a second, from when each worker has finished one to the end."""
    running = [subprocess.Popen([*command, "-o", str(out)]) for command in processes]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"failed: {' '.join(processes[0])}")
    times = sorted(path.stat().st_mtime for path in out.iterdir() if not path.name.startswith("."))
    return (len(times) - workers) / (times[-1] - times[workers - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", action="append", help="shipped model, checkpoint or tiny (default: dpt_complex, tiny)"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workers", type=int, nargs="*", default=[*range(1, (os.cpu_count() or 1) + 1)])
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=int, default=44_100)
    parser.add_argument("--format", default="flac")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make(root / "in", options.files, options.seconds, options.rate, options.format)
        tiny = root / "tiny.safetensors"
        torch.manual_seed(0)
        name, config = TINY[0], make_config(*TINY)
        checkpoint.save(tiny, name, config, build(name, config).eval(), {}, half=False)
        models = {name: str(tiny) if name == "tiny" else name for name in options.model or ("dpt_complex", "tiny")}
        print(f"{options.files} files of {options.seconds:g} s, {options.rate} Hz, {options.format}, {options.dtype}\n")
        print("| processor seconds for an hour | reading | resampling | model | writing | the rest | whole |")
        print("|---" * 7 + "|")
        for name, source in models.items():
            spent = stages(next((root / "in").iterdir()), source, options.dtype)
            whole = spent.pop("whole")
            cells = [*spent.values(), whole - sum(spent.values()), whole]
            print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)
        print("\n| files a second | workers | how | files/s | x real time | gain |")
        print("|---" * 6 + "|")
        for name, source in models.items():
            first: dict[str, float] = {}
            for workers in options.workers:
                for number, (how, processes) in enumerate(commands(root / "in", source, options.dtype, workers)):
                    speed = rate(processes, root / f"{name.replace('/', '_')}-{workers}-{number}", workers)
                    gain = speed / first.setdefault(how, speed)
                    cells = [name, str(workers), how, f"{speed:.2f}", f"{speed * options.seconds:.0f}", f"{gain:.2f}"]
                    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
