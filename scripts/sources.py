"""SOURCES.csv, which says where the recordings in a data folder come from, and what may be made of them.

It lies in DATA or beside it, with the columns set ("DATA/speech", "DATA/noise"), source, licence, minutes.
DATA/speech_index.csv and DATA/noise_index.csv name the source of each file (file, source).
"""

from __future__ import annotations

import csv
from pathlib import Path


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def find_table(data: Path) -> Path | None:
    return next((path for path in (data / "SOURCES.csv", data.parent / "SOURCES.csv") if path.is_file()), None)


def source_of_files(data: Path, part: str) -> dict[str, str]:
    """File name -> source, for the recordings in DATA/part; empty where no index says so."""
    index = data / f"{part}_index.csv"
    found = rows(index) if index.is_file() else []
    return {row["file"]: row["source"] for row in found if "source" in row and (data / part / row["file"]).is_file()}
