"""fastenh data: archives to folders, folders to one file."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fastenh.cli.errors import one_line
from fastenh.cli.places import Place
from fastenh.data.archives import unpack
from fastenh.data.corpus import PACK_SUFFIX, Corpus
from fastenh.errors import printable
from fastenh.models.frontend import SAMPLE_RATE
from fastenh.remote import stamp


@click.group("data")
def command() -> None:
    """Prepare data for training."""


@command.command("prepare")
@click.argument("archives", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder to unpack to.")
@click.option(
    "--max-gb",
    default=200.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Largest unpacked size of each archive.",
)
def prepare(archives: tuple[Path, ...], folder: Path, max_gb: float) -> None:
    """Unpack the sound files of ARCHIVES (.zip, .tar, .tar.gz ..., .7z), each into a folder of its own name.

    An archive that is damaged or unsafe (paths that lead outside, links, devices) leaves nothing behind.
    """
    with one_line():
        for archive in archives:
            unpacked = unpack(archive, folder, int(max_gb * 1e9))
            for path, count in unpacked.folders.items():
                click.echo(f"{printable(str(path))}: {count} sound file{'s' * (count > 1)}")
            if unpacked.left_out:
                click.echo(f"{printable(archive.name)}: {unpacked.left_out} files that are not sound were left out")


@command.command("pack")
@click.argument("sources", nargs=-1, required=True, type=Place(exists=True))
@click.option("-o", "--output", "path", required=True, type=Place(dir_okay=False), help="The file to write.")
def pack(sources: tuple[Path, ...], path: Path) -> None:
    """Pack the recordings of SOURCES (folders or packs) into one file of 16-bit mono at 16 kHz.

    fastenh train takes it in place of a folder for --clean, --noise and --rir, and opens it at once.
    """
    if path.suffix != PACK_SUFFIX:
        raise click.UsageError(f"-o: a pack ends in {PACK_SUFFIX}, unlike {path.name}")
    with one_line():
        warnings: list[str] = []
        corpus = Corpus.load(list(sources), SAMPLE_RATE, warnings)
        for warning in warnings:
            click.echo(f"warning: {printable(warning)}", err=True)
        corpus.save(path)
        began = time.perf_counter()
        Corpus.load([path], SAMPLE_RATE)
        seconds = time.perf_counter() - began
        size = f"{corpus.seconds / 3600:.2f} hours, {stamp(path)[0] / 1e6:,.1f} MB"
        click.echo(f"{printable(str(path))}: {len(corpus):,} recordings, {size}, opened again in {seconds:.3f} s")
