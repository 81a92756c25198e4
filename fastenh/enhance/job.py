"""A job: files in, enhanced files out, several at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path

import torch

from fastenh import remote
from fastenh.atomic import remove_abandoned
from fastenh.enhance.enhancer import Enhancer
from fastenh.enhance.layout import Task
from fastenh.enhance.work import ENDED, PAUSE, Meter, Options, Result, Work


def run(
    tasks: Sequence[Task],
    enhancer: Enhancer,
    options: Options | None = None,
    meter: Meter | None = None,
    stop: threading.Event | None = None,
) -> Generator[Result, None, None]:
    """Enhance the files; results come as they are finished. A file that fails is a result like any other.

    What exists is skipped, unless the manifest of an output folder says that its input or the settings have changed.
    Processes with the same output folder share its files: what another one is at work on is waited for at the end, and
    made here if that process dies. ``stop``, once it is set, ends the job with the windows at hand.
    Each of ``jobs`` threads reads, resamples and writes one file after the other; the windows of all of them go to
    the threads of the model. On the CPU these run a window each on one core, which is faster than a window on many.
    """
    options = options or Options()
    if not options.plan:
        remove_abandoned_of(tasks)
    workers = options.threads or torch.get_num_threads()
    with Work(enhancer, options, workers, roots_of(tasks), meter or Meter([])) as work:
        jobs = min(options.jobs or work.files_at_a_time, max(len(tasks), 1))
        with closing(_in_threads(work, tasks, jobs, stop or threading.Event())) as results:
            yield from results


def roots_of(tasks: Iterable[Task]) -> set[Path]:
    """The output folders that keep a manifest."""
    return {task.root for task in tasks if task.root is not None}


def remove_abandoned_of(tasks: Iterable[Task]) -> None:
    """Remove what jobs that were killed left where ``tasks`` write."""
    here = {task.target.parent for task in tasks if not remote.is_remote(task.target) and not task.leads_out()}
    stores = {root for root in roots_of(tasks) if remote.is_remote(root)}  # with all below: one listing
    for folder in here | stores:
        remove_abandoned(folder)


def _in_threads(work: Work, tasks: Sequence[Task], jobs: int, stop: threading.Event) -> Generator[Result, None, None]:
    left, begun = deque(tasks), set[Future[tuple[Task, Result | None]]]()
    with ThreadPoolExecutor(jobs, initializer=_set_threads, initargs=(work.torch_threads,)) as threads:
        try:
            while left or begun:
                while left and len(begun) < 2 * jobs:
                    begun.add(threads.submit(work.attempt, left.popleft()))
                done, begun = wait(begun, PAUSE, FIRST_COMPLETED)
                if stop.is_set():
                    work.stop()
                    left.clear()
                for future in done:
                    with suppress(*ENDED):
                        task, result = future.result()
                        if result is None:
                            left.append(task)
                        else:
                            yield result
        finally:
            work.stop()


def _set_threads(count: int | None) -> None:
    if count:
        torch.set_num_threads(count)  # of this thread alone
