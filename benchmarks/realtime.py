"""Real-time factors of the shipped models on this processor, all in one run: python -m benchmarks.realtime

Each of model, dtype and instruction set has a process of its own, and they take turns; the quickest turn counts, since
the machine may be shared. One thread: processor time for one window. Two threads: wall clock for a recording of a
minute, through the interface for Python. AVX2: what a processor without AVX-512 would do (ATEN_CPU_CAPABILITY,
ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS), on this one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import product

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SETS = {"as it is": {}, "AVX2": AVX2}
MODELS, DTYPES = ("dpt_complex", "dpt"), ("float32", "bfloat16")
MINUTE = 60
COLUMNS = ("model", "instructions", "dtype", "one thread", "two threads, wall clock", "gain")


def serve(name: str, dtype: str) -> None:
    """A turn for each line of input: the seconds it took, by each of the measures."""
    import torch

    from fastenh import Enhancer
    from fastenh.enhance.engine import Pool
    from fastenh.enhance.enhancer import SAMPLE_RATE

    torch.set_num_threads(1)
    enhancer = Enhancer.from_pretrained(name, "cpu", dtype)
    recording = 0.1 * torch.randn(1, MINUTE * SAMPLE_RATE, generator=torch.Generator().manual_seed(0)).numpy()
    window = recording[0, : enhancer.spans.window]

    def minute(threads: int) -> float:
        began = time.perf_counter()
        with Pool(enhancer.run, enhancer.batch_size, threads, 1) as pool:
            list(enhancer.stream([recording], 1, engine=pool))
        return (time.perf_counter() - began) / MINUTE

    def one_window() -> float:
        began = time.process_time()
        enhancer.run([window])
        return (time.process_time() - began) / (window.size / SAMPLE_RATE)

    one_window()
    for line in sys.stdin:
        figures = [min(one_window() for _ in range(8)), *(minute(n) for n in ((1, 2) if line.strip() else ()))]
        print(*figures, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    children = {}
    for name, (label, environment), dtype in product(MODELS, SETS.items(), DTYPES):
        if label == "AVX2" and dtype == "bfloat16":
            continue  # emulated
        command = [sys.executable, "-m", "benchmarks.realtime", "--serve", name, dtype]
        given = os.environ | environment | {"OMP_NUM_THREADS": "1"}
        children[name, label, dtype] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given
        )
    best: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(options.turns):
        for key, child in children.items():
            print("go", file=child.stdin, flush=True)
            figures = [float(value) for value in child.stdout.readline().split()]
            best[key] = [*map(min, best.get(key, figures), figures)]
    for child in children.values():
        child.stdin.close()
        child.wait()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for (name, label, dtype), (window, one, two) in best.items():
        print(f"| `{name}` | {label} | {dtype} | {window:.4f} | {two:.4f} | {one / two:.2f}x |")


if __name__ == "__main__":
    main()
