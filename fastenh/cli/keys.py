"""Single keys from the terminal, without waiting for them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def pressed() -> Iterator[Callable[[], str]]:
    """Yield a function that returns the key pressed last, or "" if there is none or no terminal."""
    if not sys.stdin or not sys.stdin.isatty():
        yield lambda: ""
        return
    try:
        windows: Any = importlib.import_module("msvcrt")
    except ImportError:
        with _posix() as key:
            yield key
    else:
        yield lambda: str(windows.getwch()) if windows.kbhit() else ""


@contextmanager
def _posix() -> Iterator[Callable[[], str]]:
    modules: list[Any] = [importlib.import_module(name) for name in ("termios", "tty", "select")]
    termios, tty, select = modules
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    tty.setcbreak(handle)
    try:
        yield lambda: os.read(handle, 1).decode(errors="replace") if select.select([handle], [], [], 0)[0] else ""
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
