"""The output of the commands: lines on stderr."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from fastenh.errors import printable


class Terminal(Console):
    """Plain text without colours, markup or wrapping; control characters and undecodable bytes are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, soft_wrap=True, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)
