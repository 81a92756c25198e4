"""One look for all pictures, and where they are written. matplotlib is an extra, imported where it is used."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastenh.atomic import replacing
from fastenh.errors import ProcessingError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
# Okabe and Ito 2008: told apart by the colour-blind, too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SEQUENTIAL, GAINS = "magma", "viridis"  # of levels and of gains: evenly lighter from end to end
_LOOK: Any = {
    "figure.dpi": 90,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "fastenh",  # equal pictures are equal files
}


class PlotError(ProcessingError, ValueError):
    """A picture that cannot be drawn, or a package that is not installed."""


class PictureNameError(UsageError, ValueError):
    """A kind of picture that is not supported."""


def check_name(path: Path) -> None:
    """Raise ``PictureNameError`` unless the ending is one of ``ENDINGS``, and ``PlotError`` without matplotlib."""
    if path.suffix not in ENDINGS:
        raise PictureNameError(f"-o: a picture ends in {' or '.join(ENDINGS)}, unlike {path.name}")
    need_matplotlib()


def need_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("matplotlib cannot be imported: pip install 'fastenh[plots]'")


@contextmanager
def figure(target: Any, width: float, height: float, kind: str = "") -> Iterator[Figure]:
    """A figure of inches to draw in, written to ``target`` (a path or a binary file) at the end, as a whole."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_LOOK):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        if not isinstance(target, Path):
            drawn.savefig(target, format=kind)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, mode=0o644) as temporary:
            vector = target.suffix == ".svg"
            drawn.savefig(temporary, format=target.suffix[1:], metadata={"Date": None} if vector else None)
