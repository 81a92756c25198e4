"""The page of the demo, by gradio."""

from __future__ import annotations

import base64
import functools
import html
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from fastenh.audio.resampling import resample
from fastenh.demo import enhancement, pictures
from fastenh.demo.enhancement import Comparison, Limits
from fastenh.demo.loudness import MOST
from fastenh.enhance.enhancer import Enhancer
from fastenh.errors import ProcessingError, UsageError, printable
from fastenh.evaluate.metrics import DIGITS, LABELS
from fastenh.models.checkpoint import shipped_models
from fastenh.models.frontend import SAMPLE_RATE
from fastenh.models.registry import DEFAULT

_KEPT = 3600  # seconds that uploads and results stay on the disk
_ATTENUATIONS = [("none", 0), *((f"{value} dB", value) for value in (30, 20, 12, 6))]
_FRONT = "# fastenh\nTakes the noise out of recorded speech. Nothing leaves the machine that this page comes from."


class Stopped:
    """Who has asked for a stop: sessions of browsers. What gradio has for it shows an error now and then."""

    def __init__(self) -> None:
        self._sessions: set[str | None] = set()

    def ask(self, request: gr.Request) -> None:
        self._sessions.add(request.session_hash)

    def forget(self, request: gr.Request) -> None:
        self._sessions.discard(request.session_hash)

    def check(self, request: gr.Request) -> None:
        """Raises ``StoppedError``."""
        if request.session_hash in self._sessions:
            raise StoppedError("Stopped.")


class StoppedError(Exception):
    """The listener has asked for it."""


def build(folder: Path, samples: Path, limits: Limits, models: Sequence[str] = ()) -> gr.Blocks:
    """Make the page. It writes results into ``folder``, offers the sounds of ``samples`` where that is there, and
    ``models``, checkpoint files, before the shipped ones."""
    with gr.Blocks(title="fastenh", analytics_enabled=False, delete_cache=(600, _KEPT)) as page:
        gr.Markdown(_FRONT)
        with gr.Row():
            with gr.Column():
                recording = gr.Audio(
                    label=f"Recording ({limits.minutes:g} min, {limits.megabytes:g} MB)",
                    sources=["upload", "microphone"],
                    type="filepath",
                    buttons=[],
                    elem_id="recording",
                )
                clean = gr.File(label="Clean reference (optional, for metrics)", elem_id="clean")
            with gr.Column():
                _offer_samples(samples, recording, clean)
                offered = [*((Path(file).name, file) for file in models), *((name, name) for name in shipped_models())]
                model = gr.Radio(offered, value=models[0] if models else DEFAULT, label="Model")
                limit = gr.Radio(
                    _ATTENUATIONS, value=0, label="Attenuation limit", info="Nothing is turned down by more than this."
                )
                with gr.Row():
                    start = gr.Button("Enhance", variant="primary", elem_id="enhance")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                status = gr.HTML(_said("Choose a recording or a sample, then Enhance."), elem_id="status")
        result = gr.HTML(elem_id="result")
        stopped = Stopped()
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def run(
            recording: str | None, clean: str | None, model: str, limit: float, request: gr.Request
        ) -> Iterator[tuple[Any, Any]]:  # no partial function: gradio would not see the type of its request
            yield from _run(folder, limits, recording, clean, model, limit or None, lambda: stopped.check(request))

        shown = [status, result]
        start.click(stopped.forget, queue=False, **options).then(
            run, [recording, clean, model, limit], shown, **options
        )
        stop.click(stopped.ask, queue=False, **options)
    return page


def _offer_samples(folder: Path, recording: gr.Audio, clean: gr.File) -> None:
    samples = sorted(path for path in folder.glob("*.*") if (folder / "clean" / path.name).is_file())
    if not samples:
        return
    gr.Markdown("Samples, each with its clean reference:")
    with gr.Row():
        for path in samples:
            files = [str(path), str(folder / "clean" / path.name)]
            button = gr.Button(path.stem, size="sm", min_width=130)
            button.click(lambda files=files: files, None, [recording, clean], api_visibility="private")


@functools.cache
def _enhancer(model: str) -> Enhancer:
    return Enhancer.from_pretrained(model)


def _run(
    folder: Path,
    limits: Limits,
    recording: str | None,
    clean: str | None,
    model: str,
    limit: float | None,
    check: Callable[[], None],
) -> Iterator[tuple[Any, Any]]:
    """What the status and the result show, one after the other."""
    if recording is None:
        yield _failed("There is no recording yet: choose a file, record one, or take a sample."), gr.skip()
        return
    hidden = {str(Path(path).parent) + "/" for path in (recording, clean) if path}
    fresh = _fresh(folder)
    try:
        for status, result in _steps(fresh, limits, Path(recording), clean, model, limit):
            yield status, _without(hidden, result) if isinstance(result, str) else result
            check()
    except StoppedError as end:
        yield _said(str(end)), ""
    except (ProcessingError, UsageError, OSError) as error:
        yield _failed(_without({*hidden, f"{fresh}/"}, printable(str(error)))), ""


def _steps(
    folder: Path, limits: Limits, source: Path, clean: str | None, model: str, limit: float | None
) -> Iterator[tuple[Any, Any]]:
    yield _said("Reading ..."), ""
    began = time.perf_counter()
    target = folder / f"{source.stem}-enhanced{source.suffix}"
    comparison = yield from _progress(enhancement.enhance(source, _enhancer(model), limit, limits, target))
    elapsed = time.perf_counter() - began
    if clean:
        yield _said("Computing the metrics ..."), gr.skip()
        enhancement.judge(comparison, source, Path(clean))
    yield _said("Drawing ..."), gr.skip()
    seconds = comparison.before.size / comparison.rate
    words = f"{source.name}: {seconds:.1f} s of sound, enhanced in {elapsed:.1f} s with {Path(model).name}."
    yield _said(printable(words)), _result(comparison)


def _progress(
    steps: Generator[tuple[float, float], None, Comparison],
) -> Generator[tuple[Any, Any], None, Comparison]:
    """How far it is, in words; returns what the steps return."""
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            return end.value
        words = f"Enhancing: {_clock(done)} of {_clock(total)}"
        yield f'<div class="status">{words}<progress max="{total}" value="{done}"></progress></div>', gr.skip()


def _fresh(folder: Path) -> Path:
    """A new folder; those of an hour ago are removed."""
    for old in folder.iterdir():
        if time.time() - old.stat().st_mtime > _KEPT:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=folder))


def _result(comparison: Comparison) -> str:
    sound = comparison.enhanced.with_name("before-and-after.wav")
    gain = comparison.write_for_listening(sound)
    name = html.escape(comparison.enhanced.name)
    remarks = "".join(f"<li>{html.escape(printable(remark))}</li>" for remark in comparison.remarks)
    drawn = (resample(side[None], comparison.rate, SAMPLE_RATE)[0] for side in (comparison.before, comparison.after))
    shown = "".join(
        f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for title, png in pictures.draw(*drawn)
    )
    return f"""<div class="comparison">
<fieldset><legend>Listen to</legend>
<label><input type="radio" name="version" value="0">before</label>
<label><input type="radio" name="version" value="1" checked>after</label>
<span>{_turned(gain)}</span></fieldset>
<audio controls src="{_address(sound)}"></audio>
<p><a href="{_address(comparison.enhanced)}" download="{name}">Download {name}</a></p>
{_table(comparison)}<ul>{remarks}</ul>
<div class="pictures">{shown}</div></div>"""


def _turned(gain: float) -> str:
    if abs(gain) < 0.05:
        return "Both are equally loud."
    turned = f"After is played {abs(gain):.1f} dB {'louder' if gain > 0 else 'softer'} than it is"
    return f"{turned}, so that both are equally loud." if abs(gain) < MOST else f"{turned}, and no more than that."


def _address(path: Path) -> str:
    return f"/gradio_api/file={quote(str(path))}"


def _table(comparison: Comparison) -> str:
    rows = [("Loudness (LUFS)", *("silence" if x is None else f"{x:.1f}" for x in comparison.loudness()))]
    scores = comparison.scores
    rows += [
        (LABELS[metric], *(_figure(metric, scores[side][metric]) for side in ("before", "after")))
        for metric in scores.get("before", ())
    ]
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{before}</td><td>{after}</td></tr>' for name, before, after in rows
    )
    return f"<table><thead><tr><th></th><th>before</th><th>after</th></tr></thead><tbody>{body}</tbody></table>"


def _figure(metric: str, value: float | str) -> str:
    if isinstance(value, str):
        return html.escape(printable(value))
    return f"{value:.{DIGITS[metric]}f}" + (" dB" if metric == "si_sdr" else "")


def _said(words: str) -> str:
    return f'<div class="status" role="status">{html.escape(words)}</div>'


def _failed(words: str) -> str:
    return f'<div class="status" role="alert">{html.escape(words)}</div>'


def _without(folders: set[str], text: str) -> str:
    """Names of files alone: where uploads lie is nobody's business."""
    return functools.reduce(lambda text, folder: text.replace(folder, ""), folders, text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"
