"""The record of what every launch was counted at, so that no kernel gets slower unseen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent.parent / "results" / "roofline.json"
_MOST = 0.03  # that an estimate may grow by
_LEAST_US = 0.02  # below this the rounding of the record shows
Figures = dict[str, dict[str, list[float]]]  # by part and launch: bound, estimate, serial


def figures(found: dict[str, Any]) -> Figures:
    """Of what ``tables.counted`` gives, with a line for the sum of each part."""
    parts: Figures = {}
    for part, content in found["parts"].items():
        names: Counter[str] = Counter()
        rows = parts.setdefault(part, {})
        for row in [*content["launches"], {"name": "sum"} | content]:
            names[row["name"]] += 1
            name = row["name"] + (f" ({names[row['name']]})" if names[row["name"]] > 1 else "")
            rows[name] = [round(row[figure], 2) for figure in ("bound_us", "estimate_us", "serial_us")]
    return parts


def write(found: dict[str, Any], path: Path = RECORD) -> None:
    """A line for each launch, for diffs that can be read."""
    head = {key: found[key] for key in ("arch", "triton", "measured", "seconds")}
    head["microseconds"] = ["bound", "estimate", "serial"]
    parts = [f" {json.dumps(part)}: {{\n{_lines(rows)}\n }}" for part, rows in figures(found).items()]
    text = json.dumps(head)[:-1] + ', "parts": {\n' + ",\n".join(parts) + "\n}}\n"
    path.write_text(text, encoding="utf-8")


def _lines(rows: dict[str, list[float]]) -> str:
    return ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())


def compare(found: dict[str, Any], path: Path = RECORD) -> tuple[str, int]:
    """What differs from the record, a line each, and how many estimates grew by more than 3 %."""
    record = json.loads(path.read_text(encoding="utf-8"))
    old, new = record["parts"], figures(found)
    lines = [f"record: triton {record['triton']}; counted: triton {found['triton']}; bound / estimate / serial, us"]
    grown = 0
    for part in old | new:
        before, after = old.get(part, {}), new.get(part, {})
        for name in before | after:
            worse = name in before and name in after and _grew(before[name][1], after[name][1])
            grown += worse
            if before.get(name) != after.get(name):
                change = f"{_words(before.get(name))} -> {_words(after.get(name))}"
                lines.append(f"{part}, {name}: {change}{'  SLOWER' if worse else ''}")
    lines.append(f"{grown} estimates grew by more than {_MOST:.0%}" if grown else "no estimate grew")
    return "\n".join(lines), grown


def _grew(before: float, after: float) -> bool:
    return after - before > max(_MOST * before, _LEAST_US)


def _words(row: list[float] | None) -> str:
    return " / ".join(f"{us:.2f}" for us in row) if row else "not there"
