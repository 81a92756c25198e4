"""Systems judged on the same pairs: a value per file, means with their intervals, differences to the noisy input."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastenh.data.pairs import Pair, load_pair
from fastenh.evaluate import metrics
from fastenh.evaluate.rows import Row, Rows, Values

NOISY = "noisy"
_CHUNK = 16  # pairs: enhanced first and scored then, so that the metrics take no time from the models they judge


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % bootstrap interval over files."""

    mean: float
    low: float
    high: float
    files: int


@dataclass
class System:
    """One row of the comparison: the values of each file, and how fast it ran."""

    name: str
    values: dict[str, Values] = field(default_factory=dict)  # file -> metric -> value, or why there is none
    real_time_factor: float | None = None

    def failures(self) -> list[str]:
        """ "file: reason" of every value that could not be computed."""
        return [f"{file}: {v}" for file, row in self.values.items() for v in row.values() if isinstance(v, str)]


@dataclass(frozen=True)
class Comparison:
    systems: list[System]  # the noisy input first
    metrics: tuple[str, ...]
    warnings: list[str]

    def mean(self, system: System, metric: str) -> Mean | None:
        return bootstrap_mean([v for v in _column(system, metric).values() if math.isfinite(v)])

    def difference(self, system: System, metric: str) -> Mean | None:
        """Mean change from the noisy input, on the files where both have a value."""
        return bootstrap_mean(list(self._differences(system, metric)))

    def share_better(self, system: System, metric: str) -> float | None:
        """Share of the files on which the system beats the noisy input."""
        differences = list(self._differences(system, metric))
        return sum(d > 0 for d in differences) / len(differences) if differences else None

    def _differences(self, system: System, metric: str) -> Iterator[float]:
        noisy = _column(self.systems[0], metric)
        for file, value in _column(system, metric).items():
            if file in noisy and math.isfinite(value - noisy[file]):
                yield value - noisy[file]


def bootstrap_mean(values: Sequence[float], resamples: int = 10_000) -> Mean | None:
    """Mean and percentile bootstrap interval (Efron 1979); nothing for no values. The same values, the same answer."""
    if not values:
        return None
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    chunk = max(1, 2_000_000 // data.size)
    parts = [min(chunk, resamples - done) for done in range(0, resamples, chunk)]
    means = np.concatenate([data[rng.integers(data.size, size=(n, data.size))].mean(axis=1) for n in parts])
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(float(data.mean()), float(low), float(high), data.size)


def compare(
    pairs: Sequence[Pair],
    enhancers: dict[str, Callable[[Pair, np.ndarray], np.ndarray]],
    untimed: Collection[str] = (),
    jobs: int = 0,
    on_progress: Callable[[], None] = lambda: None,
    rows: Rows | None = None,
    stamp: Callable[[Pair], list[Any]] = lambda pair: [],
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Score the noisy side and what each enhancer makes of it (pair, noisy (L,) at 16 kHz -> (L,)).

    untimed: names of those that merely read what another program made. jobs: worker processes for the metrics; 0 for
    one a core. rows: what is done already, and is added to as it goes; a pair is done again where ``stamp`` says
    something else of it. clock: gives the seconds that the real-time factors are counted in.
    Raises ``PairError`` for a pair that cannot be used.
    """
    rows = Rows() if rows is None else rows
    chosen = metrics.available()
    done: list[Row] = []
    with _workers(jobs) as pool:
        for first in range(0, len(pairs), _CHUNK):
            waiting: list[tuple[Row, str, np.ndarray, np.ndarray]] = []
            fresh: list[Row] = []
            for pair in pairs[first : first + _CHUNK]:
                row = rows.of(pair.name, stamp(pair))
                if row is None:
                    row = _enhance(pair, stamp(pair), enhancers, waiting, clock)
                    fresh.append(row)
                done.append(row)
                on_progress()
            _score(pool, waiting, chosen)
            rows.add(fresh)
    systems = [_system(name, done, name != NOISY and name not in untimed) for name in (NOISY, *enhancers)]
    return Comparison(systems, chosen, [warning for row in done for warning in row.warnings])


def _enhance(
    pair: Pair,
    stamp: list[Any],
    enhancers: dict[str, Callable[[Pair, np.ndarray], np.ndarray]],
    waiting: list[tuple[Row, str, np.ndarray, np.ndarray]],
    clock: Callable[[], float],
) -> Row:
    """A row without values; what is to be scored for them goes to ``waiting``."""
    noisy, clean, warnings = load_pair(pair, metrics.SAMPLE_RATE)
    row = Row(pair.name, stamp, noisy.size / metrics.SAMPLE_RATE, warnings)
    waiting.append((row, NOISY, noisy, clean))
    for name, enhance in enhancers.items():
        began = clock()
        enhanced = enhance(pair, noisy)
        row.seconds[name] = clock() - began
        waiting.append((row, name, enhanced, clean))
    return row


def _score(
    pool: ProcessPoolExecutor, waiting: list[tuple[Row, str, np.ndarray, np.ndarray]], chosen: tuple[str, ...]
) -> None:
    futures = [pool.submit(metrics.score, estimate, clean, chosen) for _, _, estimate, clean in waiting]
    for (row, name, _, _), future in zip(waiting, futures, strict=True):
        row.values[name] = future.result()


def _system(name: str, rows: Sequence[Row], timed: bool) -> System:
    seconds = sum(row.audio_seconds for row in rows)
    factor = sum(row.seconds[name] for row in rows) / seconds if timed and seconds else None
    return System(name, {row.pair: row.values[name] for row in rows}, factor)


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    # Processes, since pesq is not thread-safe; spawned, since forking a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    ignored = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started them
    pool = ProcessPoolExecutor(jobs or os.cpu_count(), context, initializer=signal.signal, initargs=ignored)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _column(system: System, metric: str) -> dict[str, float]:
    rows: Iterable[tuple[str, Values]] = system.values.items()
    return {file: v for file, row in rows if isinstance(v := row.get(metric), float)}
