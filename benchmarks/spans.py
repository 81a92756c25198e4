"""Quality and cost against span and context, and what happens at the seams.

python -m benchmarks.spans --pairs NOISY CLEAN [--pairs NOISY CLEAN] [--dtype bfloat16] [--settings 4:0.5 2:0.5 ...]

A setting is SPAN:CONTEXT in seconds; "whole" is a recording in one window. Cost is processor time a second of audio, of
a recording of one minute (noisy files joined; as they are for "whole"). Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from fastenh import Enhancer
from fastenh.audio.files import read_mono
from fastenh.audio.listing import list_audio
from fastenh.evaluate.metrics import DIGITS, METRICS, score
from fastenh.models import checkpoint

RATE = 16_000
WHOLE = (60.0, 0.0)
DEFAULT = ["4.104:0.5", "4:0.5", "4:0.25", "4:0.1", "4:0", "2:0.25", "1:0.25", "8:0.5", "whole"]
_LONGEST = 9  # recordings whose seams are looked at
_FLOOR = 1e-6  # -60 dBFS: differences below are not heard
_LEVEL = 800  # samples on either side of a seam: 50 ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs=2, type=Path, action="append", required=True, metavar=("NOISY", "CLEAN"))
    parser.add_argument("--model", default="dpt_complex")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--settings", nargs="+", default=DEFAULT, metavar="SPAN:CONTEXT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [pair for folders in options.pairs for pair in _pairs(*folders)]
    longest = [noisy for noisy, _ in sorted(pairs, key=lambda pair: -pair[0].size)[:_LONGEST]]
    model = checkpoint.load(options.model)[0]
    print(
        "| span | context | PESQ | STOI | SI-SDR (dB) | cost | seams | apart (dB) | level at seams / elsewhere (dB) |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for setting in options.settings:
        span, context = WHOLE if setting == "whole" else map(float, setting.split(":"))
        enhancer = Enhancer(model, "cpu", options.dtype, span_seconds=span, context_seconds=context)
        figures = [*_quality(enhancer, pairs), f"{_cost(enhancer, pairs):.4f}", *_seams(enhancer, longest)]
        names = ["whole", ""] if setting == "whole" else setting.split(":")
        print(f"| {' | '.join([*names, *figures])} |", flush=True)


def _pairs(noisy: Path, clean: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in list_audio(noisy):
        yield read_mono(path, RATE), read_mono(clean / path.name, RATE)


def _quality(enhancer: Enhancer, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    scores = [score(enhancer(noisy, RATE), clean, METRICS) for noisy, clean in pairs]
    return [f"{np.mean([s[metric] for s in scores]):.{digits}f}" for metric, digits in DIGITS.items()]


def _cost(enhancer: Enhancer, pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The better of two."""
    joined = np.concatenate([noisy for noisy, _ in pairs])[: 60 * RATE]
    parts = [joined] if enhancer.spans.longest < joined.size else [noisy for noisy, _ in pairs[:6]]
    times = []
    for _ in range(2):
        began = time.process_time()
        for part in parts:
            enhancer(part, RATE)
        times.append(time.process_time() - began)
    return min(times) / (sum(part.size for part in parts) / RATE)


def _seams(enhancer: Enhancer, recordings: list[np.ndarray]) -> list[str]:
    """Number of seams; how far neighbours disagree there, the energy of their difference over that of the output; the
    mean change of level over a seam beyond that of a window without a seam, and the same a quarter of a span away."""
    found = [figures for noisy in recordings for figures in _seams_of(enhancer, noisy)]
    if not found:
        return ["0", "", ""]
    apart, at, beside = np.mean(found, axis=0)
    return [str(len(found)), f"{apart:.1f}" if enhancer.spans.fade else "", f"{at:.2f} / {beside:.2f}"]


def _seams_of(enhancer: Enhancer, noisy: np.ndarray) -> Iterator[tuple[float, float, float]]:
    spans = enhancer.spans
    places, output = spans.windows(noisy.size), enhancer(noisy, RATE)
    starts, windows = [start for start, _ in places], {s: enhancer(noisy[s:end], RATE) for s, end in places}
    for index, (before, after) in enumerate(pairwise(starts), start=1):
        seam, half = index * spans.span + spans.context, max(spans.fade // 2, 1)
        first, second = (windows[start][seam - half - start : seam + half - start] for start in (before, after))
        changes = [_change(enhancer, noisy, output, place) for place in (seam, seam - spans.span // 4)]
        yield _decibels(first - second, first), *changes


def _change(enhancer: Enhancer, noisy: np.ndarray, output: np.ndarray, place: int) -> float:
    """By how much the level changes otherwise in ``output`` than in a window with the place in its middle, in dB."""
    window = enhancer.spans.window
    start = min(max(0, place - window // 2), noisy.size - window)
    alone = enhancer(noisy[start : start + window], RATE)
    steps = [_decibels(x[p : p + _LEVEL], x[p - _LEVEL : p]) for x, p in ((output, place), (alone, place - start))]
    return abs(steps[0] - steps[1])


def _decibels(x: np.ndarray, y: np.ndarray) -> float:
    return 10 * float(np.log10((_power(x) + _FLOOR) / (_power(y) + _FLOOR)))


def _power(x: np.ndarray) -> float:
    return float(np.mean(np.square(x)))


if __name__ == "__main__":
    main()
