"""The comparison as a table for people, a JSON object and a CSV of files."""

from __future__ import annotations

import csv
import dataclasses
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

import fastenh
from fastenh.atomic import replacing
from fastenh.evaluate.comparison import NOISY, Comparison, Mean, System
from fastenh.evaluate.metrics import DIGITS, LABELS
from fastenh.remote import make_folder

_ESCAPED = "backslashreplace"  # a name may be no UTF-8


def comparison_table(comparison: Comparison, title: str) -> Table:
    """Make a table of the mean and 95 % interval of each metric, with the change from the noisy input below."""
    table = Table(title=title, caption="mean [95 % interval]; second line: change from noisy (files improved)")
    table.add_column("system")
    for metric in comparison.metrics:
        table.add_column(LABELS[metric] + (" (dB)" if metric == "si_sdr" else ""), justify="right")
    table.add_column("RTF", justify="right")
    for system in comparison.systems:
        cells = [_cell(comparison, system, metric) for metric in comparison.metrics]
        rtf = "" if system.real_time_factor is None else f"{system.real_time_factor:.3f}"
        table.add_row(system.name, *cells, rtf)
    return table


def _cell(comparison: Comparison, system: System, metric: str) -> str:
    digits = DIGITS[metric]
    mean = comparison.mean(system, metric)
    if mean is None:
        return "no value"
    text = f"{mean.mean:.{digits}f} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"
    difference = comparison.difference(system, metric)
    if system.name == NOISY or difference is None:
        return text
    share = comparison.share_better(system, metric) or 0.0
    return f"{text}\n{difference.mean:+.{digits}f}, {share:.0%}"


def write_json(path: Path, comparison: Comparison, settings: dict[str, Any]) -> None:
    """Write JSON; ``systems``: name -> metric -> mean, low, high, files, difference, share_better; real-time factor."""
    results = {
        "fastenh": fastenh.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "settings": settings,
        "warnings": comparison.warnings,
        "systems": {system.name: _record(comparison, system) for system in comparison.systems},
    }
    make_folder(path.parent)
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", _ESCAPED))


def _record(comparison: Comparison, system: System) -> dict[str, Any]:
    record: dict[str, Any] = {"real_time_factor": system.real_time_factor, "failures": system.failures()}
    for metric in comparison.metrics:
        record[metric] = {
            **_plain(comparison.mean(system, metric)),
            "difference": _plain(comparison.difference(system, metric)),
            "share_better": comparison.share_better(system, metric),
        }
    return record


def _plain(mean: Mean | None) -> dict[str, Any]:
    return dataclasses.asdict(mean) if mean else {}


def write_csv(path: Path, comparison: Comparison) -> None:
    """Write one line per file and system: file, system, the metrics (empty where one failed)."""
    make_folder(path.parent)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors=_ESCAPED) as out:
        writer = csv.writer(out)
        writer.writerow(["file", "system", *comparison.metrics])
        for system in comparison.systems:
            for file, row in system.values.items():
                values = (row[metric] for metric in comparison.metrics)
                writer.writerow([file, system.name, *("" if isinstance(v, str) else f"{v:.6g}" for v in values)])
