"""A folder of links to the recordings that release weights may be trained on.

    python scripts/select_by_licence.py DATA SELECTED [MINUTES]

Left out are sources whose licence is share-alike ("BY-SA") or unclear, also where that is so for some of their files,
and files of which no source is known. Of a speaker that DATA/speech_index.csv names ("speaker", "seconds") at most
MINUTES are taken, if they are given: the same recordings each time. SELECTED gets speech/, noise/, rir/, the indexes,
and a SOURCES.csv of what is in it.
"""

from __future__ import annotations

import csv
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

from sources import find_table, rows, source_of_files

_REFUSED = ("BY-SA", "UNCLEAR")


def main(data: Path, selected: Path, minutes: float | None = None) -> None:
    table = find_table(data)
    if table is None:
        sys.exit(f"{data}: no SOURCES.csv in it or beside it, so the licences are not known")
    kept = [row for row in rows(table) if not any(word in row["licence"].upper() for word in _REFUSED)]
    selected.mkdir(parents=True, exist_ok=True)
    shown = []
    for part in ("speech", "noise"):
        sources = {row["source"] for row in kept if row["set"] == f"{data.name}/{part}"}
        files = {name: source for name, source in source_of_files(data, part).items() if source in sources}
        if part == "speech" and minutes is not None:
            files = _even(files, rows(data / "speech_index.csv"), 60 * minutes)
        _link(data / part, selected / part, files)
        shutil.copy(data / f"{part}_index.csv", selected)
        shown += [row | {"set": f"{selected.name}/{part}"} for row in kept if row["set"] == f"{data.name}/{part}"]
        print(f"{part}: {len(files)} recordings of {len(sources)} sources")
    if (data / "rir").is_dir():
        _link(data / "rir", selected / "rir", [path.name for path in sorted((data / "rir").iterdir())])
        shown += [row | {"set": f"{selected.name}/rir"} for row in kept if row["set"] == f"{data.name}/rir"]
    with (selected / "SOURCES.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(shown[0]))
        writer.writeheader()
        writer.writerows(shown)


def _even(files: dict[str, str], index: list[dict[str, str]], seconds: float) -> dict[str, str]:
    """Recordings drawn at random until each speaker has ``seconds``, or no more."""
    random.Random(7).shuffle(index)
    taken: Counter[tuple[str, str]] = Counter()
    kept = {}
    for row in index:
        speaker = row["source"], row["speaker"]
        if row["file"] in files and taken[speaker] < seconds:
            taken[speaker] += float(row["seconds"])
            kept[row["file"]] = row["source"]
    return kept


def _link(source: Path, target: Path, names) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in names:
        (target / name).symlink_to((source / name).resolve())


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), *map(float, sys.argv[3:4]))
