"""fastenh evaluate: measures how good the enhancement is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from fastenh import __version__
from fastenh.allocator import keep_freed_memory
from fastenh.audio.files import read_mono
from fastenh.audio.listing import list_audio
from fastenh.cli.errors import one_line
from fastenh.cli.options import metric_jobs_option
from fastenh.cli.places import Place
from fastenh.cli.terminal import Terminal
from fastenh.data.pairs import Pair, PairError, match_pairs
from fastenh.enhance.enhancer import Enhancer
from fastenh.evaluate import metrics
from fastenh.evaluate.comparison import Comparison, compare
from fastenh.evaluate.rows import Rows
from fastenh.evaluate.tables import comparison_table, write_csv, write_json
from fastenh.remote import stamp

PART = ".part"  # behind the name of the results: what is known so far


@click.command("evaluate")
@click.argument("noisy", type=Place())
@click.argument("clean", type=Place())
@click.option(
    "--model", "models", multiple=True, help="A shipped model, a checkpoint or an exported model; may be repeated."
)
@click.option(
    "--live", is_flag=True, help="Judge the live form, as is always done for causal models; other models are refused."
)
@click.option("--enhanced", type=Place(), help="Folder of files that any program enhanced.")
@click.option("--out", type=Place(dir_okay=False), help="Write the results as JSON.")
@click.option("--csv", "csv_path", type=Place(dir_okay=False), help="Write a CSV with one line per file.")
@click.option("--device", default="auto", show_default=True, help="Device to compute on: auto, cpu, cuda ...")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Number format to compute in.",
)
@metric_jobs_option
def command(
    noisy: Path,
    clean: Path,
    models: tuple[str, ...],
    live: bool,
    enhanced: Path | None,
    out: Path | None,
    csv_path: Path | None,
    device: str,
    dtype: str,
    jobs: int,
) -> None:
    """Measure the files of NOISY, as they are and enhanced, against the references of the same names in CLEAN.

    Prints PESQ (wide band), STOI and SI-SDR: means with 95 % bootstrap intervals over the files, and the change from
    the noisy files. With --out or --csv, finished pairs are kept beside the results, and the same command resumes where
    it was stopped.
    """
    console, errors = Console(highlight=False, soft_wrap=False), Terminal()
    with one_line():
        pairs = match_pairs(noisy, clean)
        systems: dict[str, Callable[[Pair, np.ndarray], np.ndarray]] = {}
        for model in models:
            systems[_label(model, systems)] = _with_model(model, device, dtype, live)
        files = [] if enhanced is None else [enhanced.name]
        found = {} if enhanced is None else _find(enhanced, pairs)
        if enhanced is not None:
            systems[_label(enhanced.name, systems)] = _from_files(found)
        settings = {"noisy": str(noisy), "clean": str(clean), "pairs": len(pairs), "device": device, "dtype": dtype}
        settings["threads"] = torch.get_num_threads()
        rows = _rows(out or csv_path, [*models, *files], settings, errors)
        with (
            _stopped_in_words(errors, out or csv_path),
            Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress,
        ):
            bar = progress.add_task("evaluating", total=len(pairs))
            comparison = compare(
                pairs,
                systems,
                files,
                jobs,
                lambda: progress.advance(bar),
                rows,
                lambda pair: _stamps([pair.noisy, pair.clean, found.get(pair.name)]),
            )
        console.print(comparison_table(comparison, f"{len(pairs)} pairs"))
        _remarks(comparison, errors)
        if out is not None:
            write_json(out, comparison, settings)
        if csv_path is not None:
            write_csv(csv_path, comparison)
        rows.finish()


def _rows(result: Path | None, systems: list[str], settings: dict[str, Any], errors: Terminal) -> Rows:
    """Rows that are already done, kept beside the file of results; the models and metrics must be the same."""
    if result is None:
        return Rows()
    same = {**settings, "fastenh": __version__, "systems": systems, "metrics": metrics.available()}
    same["checkpoints"] = _stamps([Path(system) for system in systems])
    rows = Rows(result.with_name(result.name + PART), same)
    if len(rows):
        errors.print(f"resuming: {len(rows)} of {settings['pairs']} pairs are done")
    return rows


def _label(name: str, taken: dict[str, Callable[[Pair, np.ndarray], np.ndarray]]) -> str:
    if name in taken:
        raise click.UsageError(f"{name} is given twice")
    return name


def _with_model(model: str, device: str, dtype: str, live: bool) -> Callable[[Pair, np.ndarray], np.ndarray]:
    keep_freed_memory()
    enhancer = Enhancer.from_pretrained(model, device, dtype, live=True if live else None)
    return lambda pair, noisy: enhancer(noisy, metrics.SAMPLE_RATE)


@contextmanager
def _stopped_in_words(errors: Terminal, result: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        how = "give the same command again to resume" if result else "with --out, it could be resumed"
        errors.print(f"stopped; {how}")
        raise SystemExit(1) from None


def _stamps(paths: Sequence[Path | None]) -> list[list[Any] | None]:
    """Size and modification time of each file, which show whether it has changed."""
    return [stamp(path) if path is not None and path.is_file() else None for path in paths]


def _find(folder: Path, pairs: list[Pair]) -> dict[str, Path]:
    """The file that belongs to each pair, by its name."""
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in list_audio(folder)}
    lacking = [pair.name for pair in pairs if pair.name not in found]
    if lacking:
        raise PairError(f"{folder}: no enhanced file named {lacking[0]} ({len(lacking)} of {len(pairs)} are missing)")
    return found


def _from_files(found: dict[str, Path]) -> Callable[[Pair, np.ndarray], np.ndarray]:
    def load(pair: Pair, noisy: np.ndarray) -> np.ndarray:
        samples = read_mono(found[pair.name], metrics.SAMPLE_RATE)
        if abs(samples.size - noisy.size) > 1:
            raise PairError(f"{found[pair.name]} has {samples.size} samples at 16 kHz and its pair {noisy.size}")
        return np.resize(samples, noisy.size) if samples.size else samples

    return load


def _remarks(comparison: Comparison, errors: Console) -> None:
    for warning in comparison.warnings:
        errors.print(f"warning: {warning}")
    for system in comparison.systems:
        failures = system.failures()
        if failures:
            errors.print(f"{system.name}: {len(failures)} values could not be computed")
            for failure in failures[:10]:
                errors.print(f"  {failure}")
    lacking = [metrics.LABELS[m] for m in metrics.METRICS if m not in comparison.metrics]
    if lacking:
        errors.print(f"{' and '.join(lacking)} need an extra: pip install 'fastenh[metrics]'")
