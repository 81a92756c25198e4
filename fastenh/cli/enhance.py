"""fastenh enhance: files and folders in, enhanced files out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from fastenh.allocator import keep_freed_memory
from fastenh.audio.files import FORMATS, MAX_CHANNELS, RATES
from fastenh.audio.pipes import RAW_FORMATS, Raw
from fastenh.cli.errors import one_line
from fastenh.cli.interrupts import stoppable
from fastenh.cli.options import BatchSize, BitRate, Shard, atten_lim_option, vad_option
from fastenh.cli.outcome import passed_over, show, summed_up
from fastenh.cli.places import Place
from fastenh.cli.progress import progress
from fastenh.cli.terminal import Terminal
from fastenh.enhance import job, pipe
from fastenh.enhance.cluster import Model, joined
from fastenh.enhance.enhancer import BANDWIDTHS, CONTEXT_SECONDS, SPAN_SECONDS, Enhancer
from fastenh.enhance.exported import is_exported
from fastenh.enhance.layout import JobError, Names, lay_out
from fastenh.enhance.report import summarise, write_report
from fastenh.enhance.work import About, Meter, Options, Result
from fastenh.models.registry import DEFAULT
from fastenh.plots.figures import need_matplotlib
from fastenh.plots.page import write_page
from fastenh_kernels import backend

Run = Callable[..., Generator[Result, None, None]]


@dataclass(frozen=True)
class Engine:
    """The name of the engine that does the work; address and workers are for a cluster."""

    name: str
    address: str | None
    workers: int | None


@click.command("enhance")
@click.argument("inputs", nargs=-1, required=True, type=Place(), metavar="INPUT...")
@click.option("-o", "--output", type=Place(), help="Folder to write to; for a single input file, also a file.")
@click.option(
    "--model",
    default=DEFAULT,
    show_default=True,
    help="A shipped model, a checkpoint or an exported model (.onnx).",
)
@click.option("--device", default="auto", show_default=True, help="Device to compute on: auto, cpu, cuda, cuda:1 ...")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Number format to compute in.",
)
@click.option(
    "--backend",
    "backend_name",
    default="auto",
    show_default=True,
    type=click.Choice(backend.BACKENDS),
    help="Which implementation of the operations to use.",
)
@atten_lim_option
@click.option(
    "--bandwidth",
    default="full",
    show_default=True,
    type=click.Choice(BANDWIDTHS),
    help="For recordings above 16 kHz: keep what is above 8 kHz where there is speech, or remove it.",
)
@vad_option
@click.option(
    "--live",
    is_flag=True,
    help="Run as a stream, hop by hop. Causal models such as dpt_complex-live always do; other models are refused.",
)
@click.option("--suffix", default="", help="Text to add to the name of each output, before its extension.")
@click.option(
    "--format", "ending", type=click.Choice(FORMATS), help="Container of the outputs.  [default: that of the input]"
)
@click.option("--track", type=click.IntRange(1), help="Clean only this one of several sound tracks.  [default: all]")
@click.option(
    "--bitrate", type=BitRate(), help="Bit rate of compressed outputs, such as 128k.  [default: that of the input]"
)
@click.option(
    "--raw",
    nargs=3,
    type=(click.IntRange(*RATES), click.IntRange(1, MAX_CHANNELS), click.Choice(list(RAW_FORMATS))),
    metavar="RATE CHANNELS FORMAT",
    help=f"For '- -o -': read and write samples without a header. FORMAT is one of {', '.join(RAW_FORMATS)}.",
)
@click.option("--shard", type=Shard(), help="Process only part i of n of the files, which are dealt out one by one.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist instead of skipping them.")
@click.option("--dry-run", is_flag=True, help="Say what would happen to each file, but write nothing.")
@click.option(
    "--report",
    type=Place(dir_okay=False),
    help="Write a report on each file: JSON, or a page with pictures (.html).",
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="Where the work is done: in this process, or by the workers of a Ray cluster (needs the extra ray).",
)
@click.option(
    "--address", help="Ray cluster to use: auto, HOST:PORT, ray://HOST:PORT.  [default: one started on this machine]"
)
@click.option("--workers", type=click.IntRange(1), help="Number of Ray workers.  [default: one per GPU, else per core]")
@click.option("--jobs", type=click.IntRange(1), help="Number of files to process at a time.  [default: threads + 1]")
@click.option("--threads", type=click.IntRange(1), help="Number of model threads on the CPU.  [default: one per core]")
@click.option(
    "--batch-size",
    type=BatchSize(1),
    default="auto",
    show_default=True,
    help="Number of windows per call of the model.",
)
@click.option(
    "--span-seconds",
    type=float,
    default=SPAN_SECONDS,
    show_default=True,
    help="Part of each window that is kept, in seconds.",
)
@click.option(
    "--context-seconds",
    type=float,
    default=CONTEXT_SECONDS,
    show_default=True,
    help="Context on each side, in seconds.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print one line per file.")
def command(
    inputs: tuple[Path, ...],
    output: Path | None,
    model: str,
    device: str,
    dtype: str,
    backend_name: str,
    atten_lim: float | None,
    bandwidth: str,
    vad: bool,
    live: bool,
    suffix: str,
    ending: str | None,
    track: int | None,
    bitrate: int | None,
    raw: tuple[int, int, str] | None,
    shard: tuple[int, int] | None,
    overwrite: bool,
    dry_run: bool,
    report: Path | None,
    engine: str,
    address: str | None,
    workers: int | None,
    jobs: int | None,
    threads: int | None,
    batch_size: int | None,
    span_seconds: float,
    context_seconds: float,
    quiet: bool,
    verbose: bool,
) -> None:
    """Take the noise out of files and folders.

    Folders are searched recursively; those with a .nomedia file are skipped. Without -o, FOLDER becomes
    FOLDER-enhanced and NAME.wav becomes NAME-enhanced.wav. Rate, channels, length, container and sample format stay as
    they are. Several processes with one output folder share its files. Ctrl-C stops after the current window, a second
    Ctrl-C at once; give the same command again to resume. The exit code is 1 if a file failed or the job was stopped,
    and 2 for wrong usage. "fastenh enhance - -o -" enhances standard input to standard output while it is read: WAV or,
    with --raw, samples without a header. With --live the output is a few hundredths of a second late.
    """
    console, errors = Terminal(quiet=quiet), Terminal()
    keep_freed_memory()
    spans = {"span_seconds": span_seconds, "context_seconds": context_seconds}
    sound: dict[str, Any] = {"bandwidth": bandwidth, "vad": vad}
    loaded: dict[str, Any] = {**sound, "live": True if live else None, **spans}
    if Path("-") in (*inputs, output) or raw:
        with one_line(), backend.use_backend(backend_name if backend_name != "auto" else None):
            if inputs != (Path("-"),) or output != Path("-"):
                raise JobError("a pipe goes to a pipe: fastenh enhance - -o -")
            if threads:
                torch.set_num_threads(threads)
            enhancer = Enhancer.from_pretrained(model, device, dtype, batch_size=1, **loaded)
            for warning in pipe.run(0, 1, enhancer, Raw(*raw) if raw else None, atten_lim):
                console.print(f"warning: {warning}")
        return
    began = time.perf_counter()
    if is_exported(model) and backend_name != "auto":
        raise click.UsageError("--backend is for models in PyTorch; an exported one runs in onnxruntime")
    with one_line(), backend.use_backend(backend_name if backend_name != "auto" else None):
        layout = lay_out(inputs, Names(output, suffix, ending and f".{ending}"))
        page = report is not None and report.suffix == ".html"
        if page:
            need_matplotlib()
        if not layout.tasks and not layout.bad:
            raise JobError(f"no audio files in {', '.join(map(str, inputs))}{passed_over(layout.passed)}")
        number, count = shard or (1, 1)
        tasks = layout.tasks[number - 1 :: count]
        options = Options(overwrite, atten_lim, jobs, threads, dry_run, track, bitrate)
        loaded["batch_size"] = batch_size
        chosen = Engine(engine, address, workers)
        with _started(chosen, (model, device, dtype, backend_name), loaded, options) as (run, about):
            if verbose:
                console.print(f"backend {about.backend.name}: {about.backend.reason}")
            results = [Result(path, None, "failed", error=reason) for path, reason in layout.bad]
            for result in results:
                show(result, errors, console, verbose)
            meter = Meter(tasks)
            with (
                stoppable() as stop,
                progress(console, meter, len(tasks), quiet=quiet or verbose or dry_run) as files,
                closing(run(tasks, meter=meter, stop=stop)) as found,
            ):
                for result in found:
                    results.append(result)
                    files.done += 1
                    show(result, errors, console, verbose or dry_run)
            results.sort(key=lambda result: result.source.parts)
            summary = summarise(results, time.perf_counter() - began, layout.passed)
            if report is not None:
                named: dict[str, Any] = {"model": model, "device": about.device, "dtype": about.dtype}
                named |= {"engine": engine, "backend": about.backend.name, "atten_lim_db": atten_lim}
                named |= {**sound, "track": track, "bit_rate": bitrate, **spans, "live": about.live, "dry_run": dry_run}
                (write_page if page else write_report)(report, results, summary, named)
            console.print(summed_up(summary, results))
    left = len(tasks) - files.done
    if left:
        errors.print(f"stopped with {left} files left; give the same command again to resume")
    if summary.failed or left:
        raise SystemExit(1)


@contextmanager
def _started(
    engine: Engine, named: tuple[str, str, str, str], loaded: dict[str, Any], options: Options
) -> Iterator[tuple[Run, About]]:
    """What runs the job, and what it runs on.

    named: model, device, dtype and backend; loaded: how the model is loaded.
    """
    model, device, dtype, _ = named
    if engine.name == "ray":
        with joined(engine.address, Model.of(*named, loaded), options, engine.workers) as cluster:
            yield cluster.run, cluster.about
        return
    if engine.address or engine.workers:
        raise click.UsageError("--address and --workers need --engine ray")
    enhancer = Enhancer.from_pretrained(model, device, dtype, **loaded)
    yield partial(job.run, enhancer=enhancer, options=options), About.of(enhancer, model)
