"""The progress of a job: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fastenh.enhance.work import Meter

_SECONDS = {True: 0.2, False: 15.0}  # between two looks, on a terminal and elsewhere


class Files:
    """Count of files done, for ``words``."""

    def __init__(self, meter: Meter, total: int) -> None:
        self.meter, self.total, self.done = meter, total, 0
        self._began = time.monotonic()

    def words(self) -> str:
        """Files, hours of audio, speed and time left."""
        elapsed = max(time.monotonic() - self._began, 1e-3)
        audio, share = self.meter.audio_seconds, self.meter.bytes / max(self.meter.total_bytes, 1)
        left = _clock(elapsed / share - elapsed) if share > 0.001 else "?"
        return (
            f"{self.done}/{self.total} files, {audio / 3600:.2f} h of audio, {audio / elapsed:.1f} x real time, "
            f"{left} left"
        )


@contextmanager
def progress(console: Console, meter: Meter, total: int, quiet: bool) -> Iterator[Files]:
    """Show the progress until the context ends; the caller counts the files."""
    files, ended = Files(meter, total), threading.Event()
    if quiet:
        yield files
        return
    watch = _bar if console.is_terminal else _lines
    watcher = threading.Thread(target=watch, args=(console, files, ended), daemon=True)
    watcher.start()
    try:
        yield files
    finally:
        ended.set()
        watcher.join()


def _bar(console: Console, files: Files, ended: threading.Event) -> None:
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("", total=max(files.meter.total_bytes, 1))
        while not ended.wait(_SECONDS[True]):
            bar.update(task, completed=files.meter.bytes, description=files.words())


def _lines(console: Console, files: Files, ended: threading.Event) -> None:
    while not ended.wait(_SECONDS[False]):
        console.print(files.words())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
