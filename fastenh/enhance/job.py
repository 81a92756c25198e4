"""A job: files in, enhanced files out, several at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fastenh.atomic import remove_abandoned
from fastenh.audio import files
from fastenh.audio.files import AudioError, Reader
from fastenh.enhance.blend import usable
from fastenh.enhance.engine import Pool
from fastenh.enhance.enhancer import EnhancementError, Enhancer
from fastenh.enhance.layout import Task
from fastenh.enhance.manifest import Manifest

_FILES_AT_A_TIME = 16  # on a GPU: enough to fill its batches while some of them wait for the disk


@dataclass(frozen=True)
class Options:
    """``jobs`` files at a time and ``threads`` threads of the model; None chooses both. ``plan`` writes nothing."""

    overwrite: bool = False
    atten_lim_db: float | None = None
    jobs: int | None = None
    threads: int | None = None
    plan: bool = False


@dataclass
class Result:
    """What became of one file.

    ``status`` is "enhanced", "skipped", "failed", or "planned" where it would be enhanced; ``again`` says why it was
    (or would be) redone.
    """

    source: Path
    target: Path | None
    status: str
    audio_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    again: str = ""


class Meter:
    """How far a job has come, for whoever looks on: bytes of input, and seconds of audio."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.total_bytes = sum(_size(task.source) for task in tasks)
        self.bytes, self.audio_seconds = 0.0, 0.0
        self._lock = threading.Lock()

    def add(self, audio_seconds: float, size: float) -> None:
        with self._lock:
            self.audio_seconds += audio_seconds
            self.bytes += size


class _StopError(Exception):
    """The job ends early."""


def run(
    tasks: Sequence[Task], enhancer: Enhancer, options: Options = Options(), meter: Meter | None = None
) -> Iterator[Result]:
    """Enhance the files; results come as they are finished. A file that fails is a result like any other.

    What exists is skipped, unless the manifest of an output folder says that its input or the settings have changed.
    Each of ``jobs`` threads reads, resamples and writes one file after the other; the windows of all of them go to
    the threads of the model. On the CPU these run a window each on one core, which is faster than a window on many.
    """
    settings = {
        "model": enhancer.identity,
        "dtype": str(enhancer.dtype),
        "span": enhancer.spans.span,
        "context": enhancer.spans.context,
        "atten_lim_db": options.atten_lim_db,
    }
    manifests = {root: Manifest(root, settings) for root in {task.root for task in tasks} if root is not None}
    if not options.plan:
        for folder in {task.target.parent for task in tasks}:
            remove_abandoned(folder)
    on_cpu = enhancer.device.type == "cpu"
    threads = options.threads or torch.get_num_threads()
    workers = threads if on_cpu else 1
    jobs = min(options.jobs or (workers + 1 if on_cpu else _FILES_AT_A_TIME), max(len(tasks), 1))
    with Pool(enhancer.run, enhancer.batch_size, workers, 1 if on_cpu else threads) as engine:
        work = _Work(enhancer, engine, options, manifests, meter or Meter([]))
        with closing(_in_threads(work, tasks, jobs)) as results:
            yield from results


def _in_threads(work: _Work, tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    left, results = iter(tasks), queue.SimpleQueue[Result | BaseException]()
    lock = threading.Lock()

    def serve() -> None:
        while True:
            with lock:
                task = None if work.stopped.is_set() else next(left, None)
            if task is None:
                return
            try:
                results.put(work.do(task))
            except BaseException as error:  # raised where the results are read
                results.put(error)
                return

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        work.stopped.set()
        for thread in threads:
            thread.join()


class _Work:
    """What the threads of a job share."""

    def __init__(
        self, enhancer: Enhancer, engine: Pool, options: Options, manifests: dict[Path, Manifest], meter: Meter
    ) -> None:
        self.enhancer, self.engine, self.options = enhancer, engine, options
        self.manifests, self.meter = manifests, meter
        self.stopped = threading.Event()

    def do(self, task: Task) -> Result:
        began = time.perf_counter()
        try:
            result = self._do(task)
        except (AudioError, EnhancementError, OSError, MemoryError, RuntimeError, ValueError) as error:
            text = str(error) or type(error).__name__
            name = "" if str(task.source) in text or str(task.target) in text else f"{task.source}: "
            result = Result(task.source, None, "failed", error=name + text)
        result.elapsed_seconds = time.perf_counter() - began
        return result

    def _do(self, task: Task) -> Result:
        manifest, again = self.manifests.get(task.root), ""
        if task.target.exists() and not self.options.overwrite:
            again = manifest.changed(task.source, task.target) if manifest else ""
            if not again:
                self.meter.add(0.0, _size(task.source))
                return Result(task.source, task.target, "skipped")
        with files.reading(task.source) as reader:
            if self.options.plan:
                return Result(task.source, task.target, "planned", again=again)
            began = time.perf_counter()
            result = self._enhance(task, reader)
        if manifest:
            manifest.add(task.source, task.target, time.perf_counter() - began)
        result.again = again
        return result

    def _enhance(self, task: Task, reader: Reader) -> Result:
        """In blocks from file to file: a recording of any length takes the same memory."""
        given, before = Tally(), reader.encoding
        encoding = files.converted(before, task.source, task.target)
        task.target.parent.mkdir(parents=True, exist_ok=True)
        with files.writing(task.target, encoding, reader.frames) as writer:
            noisy = self._watched(reader, given, _size(task.source))
            for block in self.enhancer.stream(
                noisy, before.channels, before.sample_rate, self.options.atten_lim_db, self.engine
            ):
                writer.write(block)
        warnings = [f"{given.invalid} NaN or infinite samples taken as silence"] if given.invalid else []
        warnings += reader.warnings + writer.warnings
        return Result(task.source, task.target, "enhanced", given.frames / before.sample_rate, warnings=warnings)

    def _watched(self, reader: Reader, given: Tally, size: int) -> Iterator[np.ndarray]:
        """The blocks of a file, counted; its bytes are told as if they were spread evenly over the frames."""
        told = 0.0
        for block in reader.blocks():
            if self.stopped.is_set():
                raise _StopError
            given.count(block)
            share = min(size * block.shape[1] / max(reader.frames, 1), size - told)
            told += share
            self.meter.add(block.shape[1] / reader.encoding.sample_rate, share)
            yield block
        self.meter.add(0.0, size - told)


@dataclass
class Tally:
    """What was read, block by block."""

    frames: int = 0
    invalid: int = 0  # NaN, infinite or absurd samples

    def count(self, block: np.ndarray) -> None:
        self.frames += block.shape[1]
        self.invalid += block.size - int(np.count_nonzero(usable(block)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
