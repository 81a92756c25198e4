"""The record of a run: a line of JSON an event, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Journal:
    """Appends events to FOLDER/log.jsonl, passes them on, and draws their figures in FOLDER/tensorboard."""

    def __init__(self, folder: Path, on_event: Callable[[Event], None]) -> None:
        self._log, self._on_event = folder / "log.jsonl", on_event
        self._board = _open_board(folder / "tensorboard")

    def write(self, event: Event) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(event) + "\n")
        if self._board is not None:
            for key, value in event.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{event['kind']}/{key}", value, event["step"])
            self._board.flush()
        self._on_event(event)


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # of the package tensorboard, which is not ours to require
        return None
    return SummaryWriter(str(folder))
