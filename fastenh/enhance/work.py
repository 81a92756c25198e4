"""The work of a job: what its threads share, and how each of them enhances one file.

``job`` hands files to it on one machine, and ``cluster`` on many.
"""

from __future__ import annotations

import errno
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastenh import remote
from fastenh.atomic import fetched
from fastenh.audio import files, remux
from fastenh.audio.files import AudioError, Reader
from fastenh.audio.media import TrackReader
from fastenh.enhance.blend import usable
from fastenh.enhance.engine import Pool
from fastenh.enhance.enhancer import Enhancer
from fastenh.enhance.exported import is_exported
from fastenh.enhance.layout import Task
from fastenh.enhance.manifest import Manifest, open_manifest
from fastenh.enhance.rehearsal import rehearse
from fastenh.errors import ProcessingError
from fastenh_kernels import backend
from fastenh_kernels.backend import Choice

PAUSE = 0.2  # seconds between two looks at what other processes are at work on
_FILES_AT_A_TIME = 16  # on a GPU: enough to fill its batches while some of them wait for the disk


@dataclass(frozen=True)
class Options:
    """``jobs`` files at a time and ``threads`` threads of the model; None chooses both.

    ``plan`` opens the files and writes nothing. ``track`` is the sound track of a container that is enhanced, all of
    them unless given; ``bit_rate`` (bit/s) that of compressed outputs, as in the input unless given.
    """

    overwrite: bool = False
    atten_lim_db: float | None = None
    jobs: int | None = None
    threads: int | None = None
    plan: bool = False
    track: int | None = None
    bit_rate: int | None = None


@dataclass(frozen=True)
class About:
    """What a job runs on."""

    device: str
    dtype: str
    backend: Choice
    live: bool  # hop by hop

    @classmethod
    def of(cls, enhancer: Enhancer, source: str) -> About:
        exported = is_exported(source)
        choice = Choice("onnxruntime", "the model is exported") if exported else backend.choose(enhancer.device)
        return cls(str(enhancer.device), str(enhancer.dtype), choice, enhancer.live_model is not None)


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


ENDED = (_StopError, CancelledError)  # what ``Work.attempt`` raises in the middle of a file, as if it had not begun


class Work:
    """What the threads of a job share, each of which attempts one file after the other. Use it as a context."""

    def __init__(
        self, enhancer: Enhancer, options: Options, threads: int, roots: Iterable[Path], meter: Meter, job: str = ""
    ) -> None:
        """job: a name that the processes of one job have in common; this process alone is one unless given."""
        self.enhancer, self.options, self.meter = enhancer, options, meter
        settings = {
            "model": enhancer.identity,
            "dtype": str(enhancer.dtype),
            "span": enhancer.spans.span,
            "context": enhancer.spans.context,
            "atten_lim_db": options.atten_lim_db,
            "bandwidth": enhancer.bandwidth,
            "vad": enhancer.vad or None,  # as in folders made before there was one
            "track": options.track,
            "bit_rate": options.bit_rate,
            "live": enhancer.live_model is not None or None,  # likewise
        }
        job = job or uuid.uuid4().hex
        self.manifests = {root: open_manifest(root, settings, job) for root in roots}
        on_cpu = enhancer.device.type == "cpu"
        workers = threads if on_cpu else 1
        self.files_at_a_time = workers + 1 if on_cpu else _FILES_AT_A_TIME
        # as a stream a recording is enhanced by the thread that reads it
        self.torch_threads = 1 if on_cpu and enhancer.live_model is not None else None
        self.engine = Pool(enhancer.run, enhancer.batch_size, workers, 1 if on_cpu else threads)
        self.stopped = threading.Event()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.engine.__exit__()
        for manifest in self.manifests.values():
            manifest.close()

    def stop(self) -> None:
        """The threads end with the window at hand."""
        self.stopped.set()
        self.engine.stop()

    def attempt(self, task: Task) -> tuple[Task, Result | None]:
        """Enhance one file; nothing where another process works on it. Raises one of ``ENDED``."""
        if self.stopped.is_set():
            raise _StopError
        result = self._result(task)
        if result is None:
            self.stopped.wait(PAUSE)
        return task, result

    def _result(self, task: Task) -> Result | None:
        began = time.perf_counter()
        try:
            result = self._do(task)
        except (ProcessingError, OSError, MemoryError, RuntimeError, ValueError) as error:
            result = Result(task.source, None, "failed", error=_explained(error, task))
        if result is not None:
            result.elapsed_seconds = time.perf_counter() - began
        return result

    def _do(self, task: Task) -> Result | None:
        manifest = None if task.root is None else self.manifests.get(task.root)
        if task.leads_out():
            raise AudioError(f"{task.target}: a link leads out of the output folder, nothing is written there")
        if self._look(task, manifest)[0]:  # before it is claimed, for which a folder must be writable
            return self._found(task, manifest)
        if manifest is None or self.options.plan:
            return self._make(task, manifest)
        with manifest.claim(task.target) as mine:
            return self._make(task, manifest) if mine else None

    def _make(self, task: Task, manifest: Manifest | None) -> Result:
        is_finished, again = self._look(task, manifest)
        if is_finished:  # by another process, while this one waited for it
            return self._found(task, manifest)
        began = time.perf_counter()
        if self.options.plan:
            rehearse(task, self.options.track, self.options.bit_rate)
            return Result(task.source, task.target, "planned", again=again)
        if remux.rewrites(task.target):
            result = self._rewrite(task)
        else:
            with files.reading(task.source, self.options.track) as reader:
                result = self._enhance(task, reader)
        if manifest:
            manifest.add(task.source, task.target, time.perf_counter() - began, result.audio_seconds, result.warnings)
        result.again = again
        return result

    def _look(self, task: Task, manifest: Manifest | None) -> tuple[bool, str]:
        """Whether there is nothing to do; and why an output that exists is made again, unless it is in any case."""
        if not _exists(task.target) or self._redone(task, manifest):
            return False, ""
        again = manifest.changed(task.source, task.target) if manifest else ""
        return not again, again

    def _found(self, task: Task, manifest: Manifest | None) -> Result:
        self.meter.add(0.0, _size(task.source))
        made = manifest.made(task.target) if manifest else None
        if made:  # by a worker of this job that was lost before it could tell
            return Result(task.source, task.target, "enhanced", made[0], warnings=made[1])
        return Result(task.source, task.target, "skipped")

    def _redone(self, task: Task, manifest: Manifest | None) -> bool:
        """``overwrite`` replaces what was there before this job, not what another process made meanwhile."""
        return self.options.overwrite and not (manifest and manifest.is_recent(task.target))

    def _enhance(self, task: Task, reader: Reader | TrackReader) -> Result:
        """In blocks from file to file: a recording of any length takes the same memory."""
        given, before, remarks = Tally(), reader.encoding, list[str]()
        encoding = files.converted(before, task.source, task.target)
        if self.options.bit_rate:
            encoding = replace(encoding, bit_rate=self.options.bit_rate)
        remote.make_folder(task.target.parent)
        with files.writing(task.target, encoding, reader.frames) as writer:
            noisy = self._watched(reader, given, _size(task.source))
            for block in self.enhancer.stream(
                noisy, before.channels, before.sample_rate, self.options.atten_lim_db, self.engine, remarks
            ):
                writer.write(block)
        warnings = _invalid(given.invalid) + remarks + reader.warnings + writer.warnings
        return Result(task.source, task.target, "enhanced", given.frames / before.sample_rate, warnings=warnings)

    def _rewrite(self, task: Task) -> Result:
        """A container: all or one of its sound tracks, whatever else there is as it is."""
        remarks, tallies = list[str](), list[tuple[Tally, int]]()

        def clean(track: TrackReader) -> Iterator[np.ndarray]:
            given, encoding = Tally(), track.encoding
            noisy = self._watched(track, given, 0 if tallies else _size(task.source))
            tallies.append((given, encoding.sample_rate))
            return self.enhancer.stream(
                noisy, encoding.channels, encoding.sample_rate, self.options.atten_lim_db, self.engine, remarks
            )

        remote.make_folder(task.target.parent)
        with fetched(task.source) as source:
            warnings = remux.rewrite(source, task.target, clean, self.options.track, self.options.bit_rate)
        seconds = sum(given.frames / rate for given, rate in tallies)
        warnings = _invalid(sum(given.invalid for given, _ in tallies)) + remarks + warnings
        return Result(task.source, task.target, "enhanced", seconds, warnings=warnings)

    def _watched(self, reader: Reader | TrackReader, given: Tally, size: int) -> Iterator[np.ndarray]:
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


def _invalid(count: int) -> list[str]:
    return [f"{count} NaN or infinite samples taken as silence"] if count else []


def _explained(error: Exception, task: Task) -> str:
    """In words, with the name of the file that it is about."""
    if isinstance(error, OSError) and error.strerror:  # of an input that cannot be read it is an AudioError
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{task.target}: {files.DISK_FULL if full else error.strerror}"
    text = str(error) or type(error).__name__
    return text if str(task.source) in text or str(task.target) in text else f"{task.source}: {text}"


def _exists(path: Path) -> bool:
    with remote.reported(path):
        return path.exists()


def _size(path: Path) -> int:
    try:
        with remote.reported(path):
            return path.stat().st_size
    except (OSError, remote.RemoteError):
        return 0
