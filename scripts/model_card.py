"""The model card of weights that scripts/release.sh made, and how they compare with those that are shipped.

    python scripts/model_card.py OUT DATA

Reads OUT/dpt.safetensors and OUT/results/*.json, writes OUT/dpt.md. SOURCES.csv, in DATA or beside it, has a line a
source, with the columns set ("DATA/speech", "DATA/noise"), source, licence, minutes.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results_table import markdown

from fastenh.evaluate.metrics import DIGITS, LABELS
from fastenh.models import checkpoint
from fastenh.models.registry import count_parameters

_CARD = """# Model card: `{name}`

A {name} of {parameters:,} parameters that takes noise out of speech at 16 kHz. File: `{file}`, fp16; its header says
configuration, recipe and hash ({sha256}).

## Training

- {steps:,} steps of {batch} crops of {seconds:g} s ({audio:.2g} hours of mixed audio), {hours:g} hours on {device};
  {date}.
- {data}.
- The best on held-out training data: {validation}.
- Recipe: `{recipe}`

{sources}

## Results

`fastenh evaluate`, float32, {threads} threads: mean and 95 % interval over files, difference to noisy, share of files
that got better.

{results}

## Limits

It hears 16 kHz and takes what lies above 8 kHz out with the noise. Competing voices and reverberation stay. It knows
the languages, rooms and noises of the data above: judge by ear before using it where words matter; do not use it for
evidence.
"""


def main(out: Path, data: Path) -> None:
    path = out / f"dpt{checkpoint.SUFFIX}"
    results = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted((out / "results").glob("*.json"))}
    (out / "dpt.md").write_text(card(path, results, data), encoding="utf-8")
    print(f"{out / 'dpt.md'}: the model card")
    print(verdict(results, str(path)))


def card(path: Path, results: dict[str, dict[str, Any]], data: Path) -> str:
    model, found = checkpoint.load(path)
    training = found.training
    crops = training["recipe"]["data"]
    first = next(iter(results.values()))
    names = {str(path): "these weights", "dpt": "shipped before"}
    pairs = [f"{r['settings']['pairs']} pairs of `{name}`:\n\n{markdown(r, names)}" for name, r in results.items()]
    return _CARD.format(
        name=found.name,
        parameters=count_parameters(model),
        file=path.name,
        sha256=found.sha256[:16],
        steps=training["steps"],
        batch=crops["batch_size"],
        seconds=crops["seconds"],
        audio=training["steps"] * crops["batch_size"] * crops["seconds"] / 3600,
        hours=training["hours"],
        device=training["device"],
        date=datetime.now(UTC).date(),
        data=training["data"],
        validation=", ".join(f"{key} {value:.3f}" for key, value in training["validation"].items()),
        recipe=json.dumps(training["recipe"]),
        sources=_sources(data),
        threads=first["settings"]["threads"],
        results="\n\n".join(pairs),
    )


def _sources(data: Path) -> str:
    """The lines of SOURCES.csv, in DATA or beside it, that belong to recordings in DATA."""
    table = next((path for path in (data / "SOURCES.csv", data.parent / "SOURCES.csv") if path.is_file()), None)
    if table is None:
        return "Sources and licences of the data: not given."
    lines = ["| what | source | minutes | licence |", "|---|---|---|---|"]
    for row in _rows(table):
        group, _, what = row["set"].rpartition("/")
        used = _used(data, what) if group.endswith(data.name) and (data / what).is_dir() else set()
        if used is None or row["source"] in used:
            lines.append(f"| {what} | {row['source']} | {row['minutes']} | {row['licence']} |")
    return "\n".join(lines)


def _used(data: Path, what: str) -> set[str] | None:
    """Sources of the files that are there, by DATA/WHAT_index.csv (file, source); nothing where that does not say."""
    index = data / f"{what}_index.csv"
    rows = _rows(index) if index.is_file() else []
    return (
        {row["source"] for row in rows if (data / what / row["file"]).is_file()}
        if rows and "source" in rows[0]
        else None
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def verdict(results: dict[str, dict[str, Any]], new: str) -> str:
    """How the new weights compare with the shipped ones: all figures of all sets have to be better."""
    lines, worse = [], 0
    for name, result in results.items():
        ours, shipped = result["systems"][new], result["systems"]["dpt"]
        for metric in (m for m in LABELS if "mean" in ours.get(m, {}) and "mean" in shipped.get(m, {})):
            change = ours[metric]["mean"] - shipped[metric]["mean"]
            worse += change <= 0
            lines.append(f"{name}: {LABELS[metric]} {change:+.{DIGITS[metric]}f} over the shipped")
    if worse or not lines:
        lines.append("NOT better than the shipped weights on every figure: keep those")
    else:
        lines.append("better than the shipped weights on every figure: copy .safetensors and .md to fastenh/weights")
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve())
