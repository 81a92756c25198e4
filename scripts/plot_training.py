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
    metrics = [metric for metric in LABELS if any(read(log, "epoch", f"valid_{metric}")[0] for log in logs)]
    width = 1 + len(metrics)
    figure, axes = plt.subplots(1, width, figsize=(1.5 + 4 * width, 3.2), layout="constrained", squeeze=False)
    loss_axis, *metric_axes = axes[0]
    shown: list[float] = []
    for index, log in enumerate(logs):
        colour, name = f"C{index}", log.parent.name
        steps, losses = read(log, "step", "loss")
        validated, values = read(log, "epoch", "valid_loss")
        shown += smooth(losses)[_SMOOTHED:] + values
        loss_axis.plot(steps, smooth(losses), color=colour, alpha=0.5, label=f"{name}, training")
        loss_axis.plot(validated, values, color=colour, marker=".", label=f"{name}, validation")
        for axis, metric in zip(metric_axes, metrics, strict=True):
            axis.plot(*read(log, "epoch", f"valid_{metric}"), color=colour, marker=".")
            axis.set(title=f"{LABELS[metric]} (validation)")
    if shown:
        loss_axis.set_ylim(0.95 * min(shown), 1.05 * max(shown))
    loss_axis.set_title("loss")
    loss_axis.legend(fontsize=7)
    for axis in axes[0]:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
