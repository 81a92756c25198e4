"""Who runs the model on the windows: the caller, batch by batch, or threads that serve many recordings at once.

A window is one channel, float32 (L,). Both kinds of engine take it with ``submit`` and answer with a ``Future``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import torch

Run = Callable[[list[np.ndarray]], list[np.ndarray]]  # windows of one length -> as many enhanced ones
Item = tuple[np.ndarray, "Future[np.ndarray]"]


class Inline:
    """Runs a batch when it is full, or a window of another length comes, in the caller's thread."""

    def __init__(self, run: Run, batch_size: int) -> None:
        self.run, self.ahead = run, batch_size  # windows of a recording that may wait for their batch
        self._waiting: list[Item] = []

    def submit(self, window: np.ndarray) -> Future[np.ndarray]:
        future: Future[np.ndarray] = Future()
        if self._waiting and self._waiting[0][0].size != window.size:
            self.flush()
        self._waiting.append((window, future))
        if len(self._waiting) >= self.ahead:
            self.flush()
        return future

    def flush(self) -> None:
        """Run what waits, as a smaller batch."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            _serve(self.run, waiting)


class Pool:
    """Threads that run the model; a batch is of equal windows, from whichever recordings they come.

    A worker takes what is there and never waits for a batch to fill. Each recording has no more than ``ahead`` windows
    in here, so that memory stays bounded. Close it, or use it as a context.
    """

    def __init__(self, run: Run, batch_size: int, workers: int = 1, torch_threads: int | None = None) -> None:
        self.run, self.batch_size, self.ahead = run, batch_size, 2 * max(batch_size, workers)
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._workers = [
            threading.Thread(target=self._work, args=(torch_threads,), daemon=True) for _ in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, window: np.ndarray) -> Future[np.ndarray]:
        future: Future[np.ndarray] = Future()
        with self._changed:
            if self._open:
                self._items.append((window, future))
                self._changed.notify()
            else:
                future.cancel()
        return future

    def flush(self) -> None:
        """Nothing to do: the workers take what there is."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the workers."""
        self.stop()
        for worker in self._workers:
            worker.join()

    def stop(self) -> None:
        """Windows that wait, and those that come, are cancelled; the ones at hand are finished."""
        with self._changed:
            self._open = False
            for _, future in self._items:
                future.cancel()
            self._items.clear()
            self._changed.notify_all()

    def _work(self, torch_threads: int | None) -> None:
        if torch_threads:
            torch.set_num_threads(torch_threads)  # of this thread alone
        while batch := self._take():
            _serve(self.run, batch)

    def _take(self) -> list[Item]:
        """The window that has waited longest and others of its length; nothing when the pool is closed."""
        with self._changed:
            while self._open and not self._items:
                self._changed.wait()
            if not self._open:
                return []
            length = self._items[0][0].size
            batch: list[Item] = []
            while self._items and len(batch) < self.batch_size and self._items[0][0].size == length:
                batch.append(self._items.popleft())
            return batch


def _serve(run: Run, batch: list[Item]) -> None:
    try:
        results = run([window for window, _ in batch])
    except Exception as error:  # it belongs to whoever asks for the result
        for _, future in batch:
            future.set_exception(error)
        return
    for (_, future), result in zip(batch, results, strict=True):
        future.set_result(result)
