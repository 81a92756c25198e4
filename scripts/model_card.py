"""The model card of weights that scripts/release.sh made, and how they compare with those that are shipped.

    python scripts/model_card.py OUT MODEL DATA

Reads OUT/MODEL.safetensors and OUT/results/*.json, writes OUT/MODEL.md. The sources are those that ``sources.py``
finds for DATA.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results_table import markdown
from sources import find_table, rows, source_of_files

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

`fastenh evaluate`, float32, {threads} threads: mean and 95 % interval over files, change from noisy (files
improved).

{results}

## Limits

It works at 16 kHz; the band above 8 kHz follows it by a single gain. Competing voices and reverberation stay. It knows
the languages, rooms and noises of the data above: judge by ear before using it where words matter; do not use it for
evidence.
"""


def main(out: Path, model: str, data: Path) -> None:
    path = out / f"{model}{checkpoint.SUFFIX}"
    results = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted((out / "results").glob("*.json"))}
    (out / f"{model}.md").write_text(card(path, results, data), encoding="utf-8")
    print(f"{out / f'{model}.md'}: the model card")
    print(verdict(results, str(path), model))


def card(path: Path, results: dict[str, dict[str, Any]], data: Path) -> str:
    model, found = checkpoint.load(path)
    training = found.training
    crops = training["recipe"]["data"]
    first = next(iter(results.values()))
    names = {str(path): "these weights", found.name: "shipped before"}
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
    table = find_table(data)
    if table is None:
        return "Sources and licences of the data: not given."
    lines = ["| what | source | minutes | licence |", "|---|---|---|---|"]
    for row in rows(table):
        group, _, what = row["set"].rpartition("/")
        if not group.endswith(data.name) or not (data / what).is_dir():
            continue
        used = set(source_of_files(data, what).values())
        if not used or row["source"] in used:
            lines.append(f"| {what} | {row['source']} | {row['minutes']} | {row['licence']} |")
    return "\n".join(lines)


def verdict(results: dict[str, dict[str, Any]], new: str, shipped_name: str) -> str:
    """How the new weights compare with the shipped ones: all figures of all sets have to be better."""
    lines, worse = [], 0
    for name, result in results.items():
        ours, shipped = result["systems"][new], result["systems"][shipped_name]
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
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).resolve())
