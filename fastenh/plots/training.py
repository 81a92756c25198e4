"""How runs learned: losses and the metrics of validation against steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastenh.evaluate.metrics import LABELS
from fastenh.plots.figures import COLOURS, PlotError, figure

_SMOOTHED = 25  # step events in the mean of a training loss


def draw(logs: Sequence[Path], picture: Path) -> None:
    """Draw one colour per log. Raises ``PlotError`` for a file that is no log of ``fastenh train``."""
    runs = {log: events_of(log) for log in logs}
    metrics = [m for m in LABELS if any(series(events, "epoch", f"valid_{m}")[0] for events in runs.values())]
    width = 1 + len(metrics)
    with figure(picture, 1.5 + 3.4 * width, 3.1) as drawn:
        loss_axis, *metric_axes = axes = drawn.subplots(1, width, squeeze=False, sharex=True)[0]
        shown: list[float] = []
        for index, (log, events) in enumerate(runs.items()):
            colour, name = COLOURS[index % len(COLOURS)], log.resolve().parent.name
            steps, losses = series(events, "step", "loss")
            validated, values = series(events, "epoch", "valid_loss")
            shown += smooth(losses)[_SMOOTHED:] + values
            loss_axis.plot(steps, smooth(losses), color=colour, alpha=0.45, label=f"{name}, training")
            loss_axis.plot(validated, values, color=colour, marker=".", label=f"{name}, validation")
            for axis, metric in zip(metric_axes, metrics, strict=True):
                axis.plot(*series(events, "epoch", f"valid_{metric}"), color=colour, marker=".")
        if shown:
            margin = 0.05 * (max(shown) - min(shown) or 1.0)
            loss_axis.set_ylim(min(shown) - margin, max(shown) + margin)
        loss_axis.set(ylabel="loss")
        loss_axis.legend()
        for axis, metric in zip(metric_axes, metrics, strict=True):
            axis.set(ylabel=f"{LABELS[metric]} of the validation" + (" (dB)" if metric == "si_sdr" else ""))
        for axis in axes:
            axis.set_xlabel("step")
            axis.locator_params(axis="x", nbins=5)
            axis.grid()


def events_of(log: Path) -> list[dict[str, Any]]:
    try:
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise PlotError(f"{log}: not a log.jsonl of fastenh train ({error})") from error
    if not any(isinstance(event, dict) and event.get("kind") in ("step", "epoch") for event in events):
        raise PlotError(f"{log}: no step of a training in it")
    return events


def series(events: Sequence[dict[str, Any]], kind: str, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one figure. Where a run was stopped and made some steps again, the later ones count."""
    found = {e["step"]: e[key] for e in events if e["kind"] == kind and e.get(key) is not None}
    return sorted(found), [found[step] for step in sorted(found)]


def smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and up to 24 before it."""
    return [sum(part) / len(part) for part in (values[max(0, i + 1 - _SMOOTHED) : i + 1] for i in range(len(values)))]
