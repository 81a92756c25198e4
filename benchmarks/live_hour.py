"""An hour of live sound through pipes: python -m benchmarks.live_hour [--hours 1] [--rate 16000] [--paced]

Starts ``fastenh enhance - -o - --live`` and gives it sound as fast as it takes it (--paced: at the pace of the sound).
For each tenth it prints the memory of the process and where the output is: the lag at which it correlates best with the
input, in samples, 0 if the two have not drifted. ``--atten-lim 6`` leaves half of the input in it, so that this can be
told with any weights. At the end: as many samples out as in.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.live import NAME


def second(number: int, rate: int) -> np.ndarray:
    """One of noise, another for each number: where it is can be told to the sample."""
    return (3000 * np.random.default_rng(number).standard_normal(rate)).clip(-32768, 32767).astype("<i2")


def lag(made: np.ndarray, number: int, rate: int) -> int:
    """By how many samples what came out as second ``number`` is behind what went in as such."""
    given = np.concatenate([second(n, rate) for n in (number - 1, number, number + 1)]).astype(np.float64)
    size = 1 << (len(given) + len(made)).bit_length()
    product = np.fft.irfft(np.fft.rfft(given, size).conj() * np.fft.rfft(made.astype(np.float64), size), size)
    best = int(np.argmax(product))
    return (best - size if best > size // 2 else best) + rate


def resident(process: int) -> float:
    """MB of memory in use."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def feed(process: subprocess.Popen[bytes], seconds: int, rate: int, paced: bool) -> None:
    began = time.monotonic()
    assert process.stdin is not None
    for number in range(seconds):
        if paced:
            time.sleep(max(0.0, began + number - time.monotonic()))
        process.stdin.write(second(number, rate).tobytes())
        process.stdin.flush()
    process.stdin.close()


def run(seconds: int, rate: int, paced: bool, model: str) -> list[tuple[float, float, int]]:
    """(hours, MB, lag) of each tenth."""
    line = [sys.executable, "-m", "fastenh", "enhance", "-", "-o", "-", "--live", "--model", model]
    line += ["--raw", str(rate), "1", "s16le", "--threads", "1", "--atten-lim", "6", "--quiet"]
    rows, tenth = [], max(seconds // 10, 1)
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        thread = threading.Thread(target=feed, args=(process, seconds, rate, paced), daemon=True)
        thread.start()
        assert process.stdout is not None
        for number in range(seconds):
            made = process.stdout.read(2 * rate)
            if number % tenth == tenth - 1 and number < seconds - 1:
                row = ((number + 1) / 3600, resident(process.pid), lag(np.frombuffer(made, "<i2"), number, rate))
                rows.append(row)
                print(f"{row[0]:.3f} h: {row[1]:.0f} MB, lag {row[2]}", flush=True)
        rest = process.stdout.read()
        assert len(made) == 2 * rate, "samples are missing"
        assert not rest, "there are more samples than went in"
        thread.join()
    assert process.returncode == 0
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rate", type=int, default=16_000)
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--model", default=NAME)
    options = parser.parse_args()
    began = time.monotonic()
    rows = run(round(options.hours * 3600), options.rate, options.paced, options.model)
    memory, lags = [row[1] for row in rows], {row[2] for row in rows}
    print(f"memory {min(memory):.0f} to {max(memory):.0f} MB, lags {sorted(lags)}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
