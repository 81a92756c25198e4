"""What earlier runs put into an output folder: how a job that was stopped goes on, and what must be done again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

NAME = ".fastenh-manifest.jsonl"


class Manifest:
    """A line of JSON for each finished file, written when it is finished; the last one of a target counts.

    A line holds the target (relative to the folder), the input, sizes and times of change of both, and the settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self._lock = threading.Lock()
        self._entries = {entry["target"]: entry for entry in _lines(folder / NAME)}

    def changed(self, source: Path, target: Path) -> str:
        """Why ``target``, which exists, must be made again; nothing where it is still valid, or not from here."""
        entry = self._entries.get(self._key(target))
        if entry is None or entry.get("written") != _stamp(target):
            return ""  # somebody else's, or changed by somebody since: kept
        if (entry.get("source"), entry.get("read")) != (str(source.resolve()), _stamp(source)):
            return "the input changed"
        before = entry.get("settings", {})
        differing = [key for key in self.settings | before if self.settings.get(key) != before.get(key)]
        return f"other settings: {', '.join(differing)}" if differing else ""

    def add(self, source: Path, target: Path, seconds: float) -> None:
        """Note a finished file."""
        key = self._key(target)
        entry = {"target": key, "written": _stamp(target), "source": str(source.resolve()), "read": _stamp(source)}
        entry |= {"seconds": round(seconds, 3), "settings": self.settings}
        self._entries[key] = entry
        with self._lock, (self.folder / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _key(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The entries that can be read: a line may be cut short by whatever stopped the run."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("target"), str):
            entries.append(entry)
    return entries
