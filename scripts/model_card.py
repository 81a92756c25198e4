"""The model card of weights that scripts/release.sh made, and how they compare with those that are shipped.

    python scripts/model_card.py OUT [SOURCES.csv]

Reads OUT/dpt.safetensors and OUT/results/*.json, writes OUT/dpt.md. SOURCES.csv has a line a source, with the columns
set (".../speech", ".../noise"), source, licence, minutes; sets without a word of "train" are left out.
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

- {steps:,} steps of {batch} crops of {seconds:g} s ({audio:.1f} hours of mixed audio), {hours:g} hours on {device};
  {date}.
- {data}.
- The best on held-out training data: {validation}.
- Recipe: `{recipe}`

{sources}

## Results

`fastenh evaluate`, float32, {threads} threads: mean and 95 % interval over files, difference to noisy, share of files
that got better. `dpt` is what this version of fastenh ships.

{results}

## Limits

It hears 16 kHz and takes what lies above 8 kHz out with the noise. Competing voices and reverberation stay. It knows
the languages, rooms and noises of the data above: judge by ear before using it where words matter; do not use it for
evidence.
"""


def main(out: Path, sources: Path | None) -> None:
    path = out / f"dpt{checkpoint.SUFFIX}"
    results = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted((out / "results").glob("*.json"))}
    (out / "dpt.md").write_text(card(path, results, sources), encoding="utf-8")
    print(f"{out / 'dpt.md'}: the model card")
    print(verdict(results, str(path)))


def card(path: Path, results: dict[str, dict[str, Any]], sources: Path | None) -> str:
    model, found = checkpoint.load(path)
    training = found.training
    data = training["recipe"]["data"]
    first = next(iter(results.values()))
    pairs = [f"{r['settings']['pairs']} pairs of `{name}`:\n\n{markdown(r)}" for name, r in results.items()]
    return _CARD.format(
        name=found.name,
        parameters=count_parameters(model),
        file=path.name,
        sha256=found.sha256[:16],
        steps=training["steps"],
        batch=data["batch_size"],
        seconds=data["seconds"],
        audio=training["steps"] * data["batch_size"] * data["seconds"] / 3600,
        hours=training["hours"],
        device=training["device"],
        date=datetime.now(UTC).date(),
        data=training["data"],
        validation=", ".join(f"{key} {value:.3f}" for key, value in training["validation"].items()),
        recipe=json.dumps(training["recipe"]),
        sources=_sources(sources),
        threads=first["settings"]["threads"],
        results="\n\n".join(pairs),
    )


def _sources(path: Path | None) -> str:
    if path is None or not path.is_file():
        return "Sources and licences of the data: not given."
    lines = ["| what | source | minutes | licence |", "|---|---|---|---|"]
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            group, _, what = row["set"].rpartition("/")
            if group.endswith("train") and what in ("speech", "noise", "rir"):
                lines.append(f"| {what} | {row['source']} | {row['minutes']} | {row['licence']} |")
    return "\n".join(lines)


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
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
