"""What a comparison has found so far, pair by pair: one that was stopped goes on from there."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastenh.atomic import replacing
from fastenh.remote import is_remote, make_folder

Values = dict[str, float | str]


@dataclass
class Row:
    """A pair: its stamp (what it was made from), length, warnings; values and seconds of work of each system."""

    pair: str
    stamp: list[Any]
    audio_seconds: float
    warnings: list[str]
    values: dict[str, Values] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Rows:
    """A file of JSON lines: the settings first, then a line for each pair. Without a path nothing is kept."""

    def __init__(self, path: Path | None = None, settings: dict[str, Any] | None = None) -> None:
        """Rows that are there of other settings are thrown away."""
        self.path = path
        self._rows: dict[str, Row] = {}
        if path is None:
            return
        first, *lines = _lines(path) or [None]
        if first == json.loads(json.dumps(settings)):
            with suppress(TypeError):  # a line that is no row ends what can be used
                for line in lines:
                    self._rows[line["pair"]] = Row(**line)
        self._settings = settings
        make_folder(path.parent)
        self._write(path)

    def _write(self, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_text("".join(map(_line, [self._settings, *map(asdict, self._rows.values())])))

    def of(self, pair: str, stamp: list[Any]) -> Row | None:
        row = self._rows.get(pair)
        return row if row is not None and row.stamp == stamp else None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: list[Row]) -> None:
        self._rows |= {row.pair: row for row in rows}
        if self.path is not None and is_remote(self.path):  # nothing can be added to a key
            self._write(self.path)
        elif self.path is not None:
            with self.path.open("a") as file:
                file.writelines(_line(asdict(row)) for row in rows)

    def finish(self) -> None:
        """All is done, and written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _line(value: Any) -> str:
    return json.dumps(value) + "\n"  # ASCII: names of any bytes pass


def _lines(path: Path) -> list[Any]:
    """Up to the first that cannot be read: the last one may be cut short."""
    found = []
    with suppress(OSError, ValueError), path.open() as file:
        for line in file:
            found.append(json.loads(line))
    return found
