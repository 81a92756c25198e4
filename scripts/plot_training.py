"""Draw how a run of ``fastenh train`` learned, and what became of its branches.

    python scripts/plot_training.py PICTURE.png RUN/log.jsonl [BRANCH/log.jsonl ...]

Losses and the metrics of validation against steps, a colour a log. Where a run was stopped between two saves and made
some steps again, the later ones count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastenh.evaluate.metrics import LABELS

_SMOOTHED = 25  # step events in the mean of a training loss


def read(log: Path, kind: str, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one figure."""
    events: list[dict[str, Any]] = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = {e["step"]: e[key] for e in events if e["kind"] == kind and e.get(key) is not None}
    return sorted(found), [found[step] for step in sorted(found)]


def smooth(values: list[float]) -> list[float]:
    """The mean of each value and up to 24 before it."""
    return [sum(part) / len(part) for part in (values[max(0, i + 1 - _SMOOTHED) : i + 1] for i in range(len(values)))]


def main(picture: Path, logs: list[Path]) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for index, log in enumerate(logs):
        colour = f"C{index}"
        steps, losses = read(log, "step", "loss")
        axes[0].plot(steps, smooth(losses), color=colour, alpha=0.5, label=f"{log.parent.name}, training")
        axes[0].plot(
            *read(log, "epoch", "valid_loss"), color=colour, marker=".", label=f"{log.parent.name}, validation"
        )
        for axis, metric in zip(axes[1:], LABELS, strict=True):
            axis.plot(*read(log, "epoch", f"valid_{metric}"), color=colour, marker=".")
            axis.set(title=f"{LABELS[metric]} (validation)")
    first = read(logs[0], "epoch", "valid_loss")[1] or smooth(read(logs[0], "step", "loss")[1])
    axes[0].set(title="loss", ylim=(0.8 * min(first), 1.6 * max(first)))
    axes[0].legend(fontsize=7)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
