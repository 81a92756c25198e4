"""fastenh export: a model as an ONNX file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch

import fastenh
from fastenh.atomic import replacing
from fastenh.cli.errors import one_line
from fastenh.cli.options import metric_jobs_option
from fastenh.data.pairs import Pair, match_pairs
from fastenh.enhance.enhancer import Enhancer
from fastenh.errors import printable
from fastenh.evaluate import metrics
from fastenh.evaluate.comparison import compare
from fastenh.evaluate.forms import forms_table
from fastenh.models import checkpoint
from fastenh.models.export import SUFFIX, ExportError, export, export_live, need, quantised


@click.command("export")
@click.argument("model")
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path, dir_okay=False), help="The .onnx file to write."
)
@click.option("--int8", is_flag=True, help="Use 8-bit matrix products, which make the file smaller and faster.")
@click.option("--live", is_flag=True, help="Write a step of live sound: 256 samples and a state in, the same out.")
@click.option(
    "--compare",
    "folders",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="NOISY CLEAN",
    help="Judge the model on these pairs in PyTorch and in onnxruntime, and print a table.",
)
@metric_jobs_option
def command(
    model: str, target: Path | None, int8: bool, live: bool, folders: tuple[Path, Path] | None, jobs: int
) -> None:
    """Write MODEL (a shipped one or a checkpoint) as an ONNX file that needs no PyTorch.

    It takes a float32 "waveform" (batch, samples) of any length at 16 kHz and gives "enhanced", of the same shape.
    Level, STFT and inverse are inside. fastenh enhance --model FILE.onnx uses it on any file. With --live it takes 256
    samples and the state left by those before them, and gives 256 samples and the next state (docs/export.md).
    """
    if target is None and folders is None:
        raise click.UsageError("say where to with -o FILE.onnx, or give --compare NOISY CLEAN")
    if target is not None and target.suffix != SUFFIX:
        raise click.UsageError(f"-o: an exported model ends in {SUFFIX}, unlike {printable(target.name)}")
    if live and folders is not None:
        raise click.UsageError("--live goes without --compare, which judges whole recordings")
    if live and int8:
        raise click.UsageError("--live goes without --int8, which makes a step of one hop no faster")
    with one_line():
        if target is not None:
            if target.exists():
                raise ExportError(f"{target}: is there already and is not replaced")
            _write(model, target, int8, live)
            click.echo(f"{printable(str(target))}: {target.stat().st_size / 1e6:.2f} MB")
        if folders is not None:
            click.echo(_compared(model, match_pairs(*folders), jobs))


def _write(source: str, target: Path, int8: bool, live: bool = False) -> None:
    need("onnx", "onnxscript", *(["onnxruntime"] if int8 else []))
    model, found = checkpoint.load(source)
    about = {"model": found.name, "sha256": found.sha256, "precision": "float32", "fastenh": fastenh.__version__}
    made = export_live(model, about) if live else export(model, about)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, mode=0o644) as temporary:
        temporary.write_bytes((quantised(made) if int8 else made).SerializeToString())


def _compared(source: str, pairs: list[Pair], jobs: int) -> str:
    """Each runs on one thread; real-time factors are in processor time, so other programs do not count."""
    need("onnxruntime")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        try:
            weights = checkpoint.locate(source)
            forms = {f"PyTorch, {dtype}": (weights, dtype) for dtype in ("float32", "bfloat16")}
            for precision in ("float32", "int8"):
                path = Path(folder, precision + SUFFIX)
                _write(source, path, int8=precision == "int8")
                forms[f"onnxruntime, {precision}"] = (path, "auto")
            enhancers = {name: _enhance(Enhancer.from_pretrained(path, "cpu", d)) for name, (path, d) in forms.items()}
            comparison = compare(pairs, enhancers, jobs=jobs, clock=time.process_time)
            return forms_table(comparison, {name: path.stat().st_size for name, (path, _) in forms.items()})
        finally:
            torch.set_num_threads(threads)


def _enhance(enhancer: Enhancer) -> Callable[[Pair, np.ndarray], np.ndarray]:
    return lambda pair, noisy: enhancer(noisy, metrics.SAMPLE_RATE)
