"""Ctrl-C and SIGTERM: the first one stops the job after the current window, the second one ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fastenh.atomic import abandon

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """The first signal sets the event; the second leaves no temporary file and ends the process with exit code 1.

    It ends without Python's own clean-up, which stops threads in the middle of C++ code and so aborts.
    """
    stop = threading.Event()

    def came(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            abandon()
            os._exit(1)
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # Python lets the main thread alone do it
        yield stop
        return
    before = {number: signal.signal(number, came) for number in _SIGNALS}
    try:
        yield stop
    finally:
        if not stop.is_set():  # else the process is about to end, which one more signal shall not disturb
            for number, handler in before.items():
                signal.signal(number, handler)
