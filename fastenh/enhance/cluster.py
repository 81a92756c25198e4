"""The same job on many machines, by Ray Data (the extra ``ray``): a worker for each GPU, or for each processor.

A worker is the job of one machine (``Work``) without its list of files; Ray deals these out, one at a time, and
gives those of a worker that was lost to another one. What exists is skipped and what is written appears as a whole, so
a file that is given out twice does no harm.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import fastenh
from fastenh.enhance.enhancer import Enhancer
from fastenh.enhance.exported import is_exported
from fastenh.enhance.job import remove_abandoned_of, roots_of
from fastenh.enhance.layout import Task
from fastenh.enhance.work import ENDED, About, Meter, Options, Result, Work
from fastenh.errors import ProcessingError, UsageError

log = logging.getLogger("fastenh")
_SECOND = 1.0  # between two exchanges of a worker, or of whoever shows the progress, with the watch
_PATIENCE = 20.0  # seconds without a free slot before that is said
_ATTEMPTS = 3  # at a file, each of which lost its worker
_BLOCKS = 20_000  # a file each, or several where there are more files
_STORE_BYTES = 100 << 20  # for names and results: sound does not pass through Ray


class ClusterError(ProcessingError):
    """A cluster that cannot be reached, or that ends in the middle."""


class ClusterUsageError(UsageError, ValueError):
    """What was asked of a cluster that has no such thing."""


@dataclass(frozen=True)
class Model:
    """What each worker loads: the arguments of ``Enhancer.from_pretrained``, and a backend by its name."""

    source: str
    device: str
    dtype: str
    backend: str
    options: dict[str, Any]
    content: bytes = b""  # of a source that is a file, which other machines need not have

    @classmethod
    def of(cls, source: str, device: str, dtype: str, backend_name: str, options: dict[str, Any]) -> Model:
        """Raises what ``Enhancer.from_pretrained`` does about the weights and options, here and at once."""
        if device not in ("auto", "cpu", "cuda"):
            raise ClusterUsageError(
                f"--device {device}: each worker has one device; auto, cpu or cuda with --engine ray"
            )
        Enhancer.from_pretrained(source, "cpu", **options)
        content = Path(source).read_bytes() if Path(source).is_file() else b""
        return cls(source, device, dtype, backend_name, options, content)

    def load(self) -> Enhancer:
        if self.backend != "auto":
            os.environ["FASTENH_BACKEND"] = self.backend
        if not self.content:
            return Enhancer.from_pretrained(self.source, self.device, self.dtype, **self.options)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            copy = Path(folder, Path(self.source).name)
            copy.write_bytes(self.content)
            return Enhancer.from_pretrained(copy, self.device, self.dtype, **self.options)


class Cluster:
    """A cluster that one is connected to."""

    def __init__(self, model: Model, options: Options, workers: int | None) -> None:
        import ray

        self._ray: Any = ray
        self._options = options
        have = ray.cluster_resources()
        gpus = 0 if model.device == "cpu" else int(have.get("GPU", 0))
        if model.device == "cuda" and not gpus:
            raise ClusterUsageError("--device cuda: the cluster has no GPU")
        threads = options.threads or 1
        slots = gpus or int(have.get("CPU", 0)) // threads
        if not slots:
            raise ClusterUsageError(f"the cluster has no {'GPU' if gpus else f'{threads} processors'} for a worker")
        self.workers = workers or slots
        self._threads, self._needs = threads, {"num_cpus": threads, "num_gpus": 1 if gpus else 0}
        model = replace(model, device="cuda" if gpus else "cpu")
        self.about, theirs = self._ask(model)
        if theirs != fastenh.__version__:
            raise ClusterError(f"the workers have fastenh {theirs}, this is {fastenh.__version__}")
        dtype = self.about.dtype.removeprefix("torch.")
        self._model = model if is_exported(model.source) else replace(model, dtype=dtype)  # one for all machines

    def _ask(self, model: Model) -> tuple[About, str]:
        """Load the model once where the workers will, so that what does not work is said at once."""
        asked = self._ray.remote(_describe).options(**self._needs, max_retries=2).remote(model)
        began, said = time.monotonic(), False
        while not self._ray.wait([asked], timeout=_SECOND)[0]:
            if time.monotonic() - began > _PATIENCE and not said:
                log.warning("waiting for a worker: the slots of the cluster are taken, or it is slow to begin")
                said = True
        try:
            return self._ray.get(asked)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"no worker could begin: {_first_line(error)}") from error

    def run(
        self, tasks: Sequence[Task], meter: Meter | None = None, stop: threading.Event | None = None
    ) -> Generator[Result, None, None]:
        """As ``job.run``."""
        if not self._options.plan:
            remove_abandoned_of(tasks)
        watch = self._ray.remote(_Watch).options(num_cpus=0, scheduling_strategy=self._here()).remote()
        begun: set[int] = set()
        stopped, done = threading.Event(), set[int]()

        def look_on() -> None:
            while not stopped.wait(_SECOND / 2):
                with suppress(self._ray.exceptions.RayError):
                    if meter is not None:
                        meter.audio_seconds, meter.bytes = self._ray.get(watch.look.remote())
                    if stop is not None and stop.is_set():
                        begun.update(self._ray.get(watch.stop.remote()))
                        stopped.set()

        looker = threading.Thread(target=look_on, daemon=True)
        looker.start()
        try:
            for row in self._rows(tasks, watch):
                result = pickle.loads(row["result"])
                done.add(row["number"])
                if result is not None:
                    yield result
                if stopped.is_set() and begun <= done:
                    break
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"the cluster gave up: {_first_line(error)}") from error
        finally:
            stopped.set()
            looker.join()
            self._ray.kill(watch)

    def _rows(self, tasks: Sequence[Task], watch: Any) -> Iterator[dict[str, Any]]:
        rows = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
        if not rows:
            return iter(())
        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        given = self._model, self._options, self._threads, roots_of(tasks), uuid.uuid4().hex, watch
        files = self._options.jobs or (self._threads + 1 if self._model.device == "cpu" else 16)
        workers = min(self.workers, len(rows))
        return iter(
            data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
            .map(
                _Worker,
                fn_constructor_args=given,
                compute=data.ActorPoolStrategy(
                    size=workers,
                    max_tasks_in_flight_per_actor=files + 1,
                    max_concurrent_calls_per_actor=files,
                    enable_true_multi_threading=True,
                ),
                **self._needs,
            )
            .iter_rows()
        )

    def _here(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=True)


@contextmanager
def joined(address: str | None, model: Model, options: Options, workers: int | None = None) -> Iterator[Cluster]:
    """Connect to the cluster at ``address``, or start one on this machine; it ends with the context.

    Raises ``ClusterUsageError``, ``ClusterError``, and what a worker raises when it loads the model.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of remarks that Ray makes about Ray Data
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the local engine: they would give way to all else
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterUsageError(f"--engine ray needs the extra: pip install 'fastenh[ray]' ({error})") from error
    how: dict[str, Any] = {"address": address}
    if address is None and "RAY_ADDRESS" not in os.environ:
        count = (workers or 0) * (options.threads or 1)
        how |= {"num_cpus": count or None, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    ours = not ray.is_initialized()
    try:
        if ours:
            _check_answer(address or os.environ.get("RAY_ADDRESS", ""))
            with _hushed():
                ray.init(**how, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {_first_line(error)}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield Cluster(model, options, workers)
    finally:
        if ours:
            ray.shutdown()


def _check_answer(address: str) -> None:
    """Raises ``OSError`` where nothing answers at HOST:PORT, which Ray would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _PATIENCE).close()


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray's core prints to standard error that it was told to print less; what fails is raised besides."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _describe(model: Model) -> tuple[About, str]:
    return About.of(model.load(), model.source), fastenh.__version__


class _Watch:
    """An actor that all workers know: it sums up how far they are, and tells them when the job ends."""

    def __init__(self) -> None:
        self._stopped = False
        self._seconds, self._bytes = 0.0, 0.0
        self._begun: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """How often this file has been begun, with this time; 0: it shall not be."""
        if self._stopped:
            return 0
        self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number]

    def tell(self, seconds: float, size: float) -> bool:
        """More that was read; answers whether the job ends."""
        self._seconds += seconds
        self._bytes += size
        return self._stopped

    def look(self) -> tuple[float, float]:
        return self._seconds, self._bytes

    def stop(self) -> list[int]:
        """End the job; answers with the files that were begun."""
        self._stopped = True
        return list(self._begun)


class _Worker:
    """An actor of the pool: several threads of Ray call it, each with a file. Ray starts a lost one again."""

    def __init__(self, model: Model, options: Options, threads: int, roots: set[Path], job: str, watch: Any) -> None:
        torch.set_num_threads(threads)
        self._watch, self._meter = watch, Meter([])
        self._work = Work(model.load(), options, threads, roots, self._meter, job)
        threading.Thread(target=self._live, daemon=True).start()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result = self._attempt(row["number"], pickle.loads(row["task"]))
        return {"number": row["number"], "result": pickle.dumps(result)}

    def _attempt(self, number: int, task: Task) -> Result | None:
        import ray

        times = ray.get(self._watch.begin.remote(number))
        if times > _ATTEMPTS:
            return Result(task.source, None, "failed", error=f"{task.source}: {times - 1} workers were lost at it")
        result = None
        with suppress(*ENDED):
            while times and result is None:
                _, result = self._work.attempt(task)
        return result

    def _live(self) -> None:
        import ray

        told = 0.0, 0.0
        while not self._work.stopped.wait(_SECOND):
            now = self._meter.audio_seconds, self._meter.bytes
            if ray.get(self._watch.tell.remote(now[0] - told[0], now[1] - told[1])):
                self._work.stop()
            told = now


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
