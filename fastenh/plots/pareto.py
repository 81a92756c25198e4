"""Quality against cost: the systems of an evaluation, and others measured before."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastenh.evaluate.comparison import NOISY
from fastenh.evaluate.metrics import LABELS
from fastenh.plots.figures import COLOURS, PlotError, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox


@dataclass(frozen=True)
class Point:
    name: str
    real_time_factor: float
    quality: float
    ours: bool


def draw(results: Path, rivals: Path | None, metric: str, picture: Path) -> None:
    """Draw the systems; a line joins those that nothing beats in both. Raises ``PlotError``."""
    points, noisy = read_results(results, metric)
    points += read_rivals(rivals, metric) if rivals else []
    if not points:
        raise PlotError(f"{results}: no system with {LABELS[metric]} and a real-time factor")
    with figure(picture, 6.4, 4) as drawn:
        axis = drawn.subplots()
        for ours, colour, marker in ((False, COLOURS[6], "o"), (True, COLOURS[1], "D")):
            chosen = [point for point in points if point.ours == ours]
            axis.scatter(
                [p.real_time_factor for p in chosen], [p.quality for p in chosen], color=colour, marker=marker, zorder=3
            )
        best = front(points)
        axis.plot([p.real_time_factor for p in best], [p.quality for p in best], color=COLOURS[5], zorder=1)
        if noisy is not None:
            axis.axhline(noisy, color="grey", linestyle=":")
            axis.annotate("noisy", (1, noisy), (-3, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", fontsize=8, color="grey")  # fmt: skip
        axis.set(xscale="log", xlabel="real-time factor, one thread (s of work for a second of audio)")
        axis.set(ylabel=f"mean {LABELS[metric]}" + {"pesq": " (wide band)", "si_sdr": " (dB)"}.get(metric, ""))
        axis.margins(x=0.15, y=0.1)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid()
        _name(axis, points)


def _name(axis: Axes, points: Sequence[Point]) -> None:
    """Each name beside its point, at the first of four places where no other name is."""
    figure: Any = axis.figure  # of its type alone matplotlib says that it could be a part of one
    figure.draw_without_rendering()  # places the axes
    taken: list[Bbox] = []
    for point in points:
        for x, y in ((6, 3), (6, -11), (-6, 3), (-6, -11)):
            label = axis.annotate(
                point.name, (point.real_time_factor, point.quality), (x, y), textcoords="offset points", fontsize=8,
                ha="left" if x > 0 else "right", fontweight="bold" if point.ours else "normal",
            )  # fmt: skip
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or (x, y) == (-6, -11):
                taken.append(box)
                break
            label.remove()


def front(points: list[Point]) -> list[Point]:
    """Return the systems that no other one beats in both cost and quality, by cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.real_time_factor, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def read_results(path: Path, metric: str) -> tuple[list[Point], float | None]:
    """Read the systems of ``fastenh evaluate --out``, and the mean of the noisy input."""
    try:
        systems = json.loads(path.read_text(encoding="utf-8"))["systems"]
        means = {name: (record["real_time_factor"], record[metric].get("mean")) for name, record in systems.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlotError(f"{path}: not the results of fastenh evaluate --out with {LABELS[metric]} ({error})") from error
    points = [Point(Path(name).stem, factor, mean, True) for name, (factor, mean) in means.items() if factor and mean]
    return points, means.get(NOISY, (None, None))[1]


def read_rivals(path: Path, metric: str) -> list[Point]:
    """Read a CSV with the columns ``name``, ``real_time_factor`` and the metric; rows without a value are left out."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            Point(row["name"], float(row["real_time_factor"]), float(row[metric]), False) for row in rows if row[metric]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlotError(f"{path}: not a CSV with name, real_time_factor and {metric} ({error})") from error
