"""Folders, wav in and wav out: 500 short files and one long file. Files a second, real-time factor, share of the model.

pytest benchmarks/test_enhance.py --benchmark-only -s. On the CPU with the threads that PyTorch takes (OMP_NUM_THREADS).
"""

import threading
import time

import numpy as np
import pytest
import soundfile
import torch

from fastenh import Enhancer
from fastenh.enhance import job, layout

RATE = 16_000
FOLDERS = {"500 files of about 1 s": [0.8 + 0.4 * index / 500 for index in range(500)], "one file of 5 min": [300.0]}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("in"), np.random.default_rng(0)
    for index, seconds in enumerate(FOLDERS[request.param]):
        soundfile.write(root / f"{index}.wav", 0.1 * draw.standard_normal(int(seconds * RATE)), RATE)
    return request.param, root


class Clock:
    """Runs a function and adds up the time that its threads spend in it."""

    def __init__(self, function):
        self.function, self.seconds, self._lock = function, 0.0, threading.Lock()

    def __call__(self, windows):
        began = time.perf_counter()
        result = self.function(windows)
        with self._lock:
            self.seconds += time.perf_counter() - began
        return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder(benchmark, folder, tmp_path, dtype):
    name, root = folder
    enhancer = Enhancer.from_pretrained("dpt", "auto", dtype)
    on_cpu = enhancer.device.type == "cpu"
    workers = torch.get_num_threads() if on_cpu else 1
    enhancer.run = clock = Clock(enhancer.run)
    tasks = [layout.Task(path, tmp_path / path.name) for path in root.iterdir()]
    results = benchmark.pedantic(lambda: list(job.run(tasks, enhancer)), rounds=1)
    assert {result.status for result in results} == {"enhanced"}
    elapsed, audio = benchmark.stats.stats.total, sum(result.audio_seconds for result in results)
    figures = {
        "files_per_second": round(len(tasks) / elapsed, 2),
        "real_time_factor": round(elapsed / audio, 4),
        "share_in_model": round(clock.seconds / (workers * elapsed), 3),
    }
    benchmark.extra_info.update(figures, threads=workers, device=str(enhancer.device))
    speed = f"{figures['files_per_second']} | {figures['real_time_factor']} | {audio / elapsed:.1f}"
    print(f"\n| {name} | {dtype} | {workers} | {speed} | {figures['share_in_model']:.0%} |")
