"""One HTML page about a job: each file before and after, with nothing from outside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastenh
from fastenh.atomic import replacing
from fastenh.audio.files import AudioError
from fastenh.enhance.report import Summary
from fastenh.enhance.work import Result
from fastenh.errors import printable
from fastenh.plots.figures import PlotError
from fastenh.plots.spectrograms import RANGE, thumbnail
from fastenh.remote import make_folder

_STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } td, th { padding: .4em; text-align: left; vertical-align: top }
tr { border-top: 1px solid #ddd } img { max-width: 100%; display: block } td:first-child { overflow-wrap: anywhere }
.bad { color: #a33 }
"""


def write_page(path: Path, results: Sequence[Result], summary: Summary, settings: dict[str, Any]) -> None:
    """Write the page: a row for each file, with pictures if it has an output. The two of a file share one scale."""
    given = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    counts = (f"{summary.enhanced} enhanced", f"{summary.skipped} skipped", f"{summary.failed} failed")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>fastenh</title><style>{_STYLE}</style>",
        f"<h1>{', '.join(counts)}</h1><p>fastenh {fastenh.__version__}: {_text(given)}. "
        f"Each picture is a spectrogram whose colours span the {RANGE:.0f} dB below the loudest point before.</p>",
        "<table><tr><th>file<th>before<th>after",
        *(_row(result) for result in results),
        "</table></html>\n",
    ]
    make_folder(path.parent)
    with replacing(path, mode=0o644) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _row(result: Result) -> str:
    words = [f"<b>{_text(result.source)}</b>", _text(result.status)]
    if result.audio_seconds:
        words.append(f"{result.audio_seconds:.1f} s")
    words += [f"<span class=bad>{_text(line)}</span>" for line in (*result.warnings, result.error) if line]
    cells = ["<br>".join(words)]
    if result.target is not None and result.status in ("enhanced", "skipped"):
        try:
            before, loudest = thumbnail(result.source)
            after, _ = thumbnail(result.target, loudest)
            cells += [_image(before, "before"), _image(after, "after")]
        except (AudioError, PlotError, OSError) as error:  # a file that has gone meanwhile, or one of no samples
            cells.append(_text(error))
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells)


def _image(png: bytes, name: str) -> str:
    return f'<img alt="spectrogram {name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _text(value: object) -> str:
    return html.escape(printable(str(value)))
