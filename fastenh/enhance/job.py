"""A job: files and folders in, enhanced files out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastenh.audio import files
from fastenh.audio.files import AudioError
from fastenh.enhance.enhancer import EnhancementError, Enhancer
from fastenh.enhance.manifest import Manifest

DEFAULT_SUFFIX = "-enhanced"


class JobError(ValueError):
    """A job that cannot be laid out: the options do not say where each file shall go."""


@dataclass(frozen=True)
class Task:
    source: Path
    target: Path
    root: Path | None = None  # the output folder that keeps a manifest


@dataclass
class Result:
    """What became of one file. ``status`` is "enhanced", "skipped" or "failed"; ``again`` says why it was redone."""

    source: Path
    target: Path | None
    status: str
    audio_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    again: str = ""


def lay_out(inputs: Sequence[Path], output: Path | None, suffix: str) -> tuple[list[Task], list[Result]]:
    """Which file becomes which, and the inputs that are not there.

    Without ``output`` a folder becomes its sibling FOLDER-enhanced and a file NAME-enhanced.EXT beside it. In an
    ``output`` folder the trees of the inputs are kept, those of several folders below their own names.
    Raises ``JobError`` where two inputs would share an output, or an output would replace an input.
    """
    tasks: list[Task] = []
    missing: list[Result] = []
    several = len(inputs) > 1
    for path in inputs:
        if path.is_dir():
            tasks += _folder_tasks(path, _folder_target(path, output, several), suffix)
        elif path.is_file():
            target = _file_target(path, output, several, suffix)
            tasks.append(Task(path, target, output if output in target.parents else None))
        else:
            missing.append(Result(path, None, "failed", error=f"{path}: no such file or folder"))
    _check_targets(tasks)
    return tasks, missing


def _folder_target(folder: Path, output: Path | None, several: bool) -> Path:
    named = folder if folder.name not in ("", "..") else folder.resolve()
    if output is not None:
        return output / named.name if several else output
    if not named.name:
        raise JobError(f"{folder}: no place beside it for the output; give -o")
    return named.with_name(named.name + DEFAULT_SUFFIX)


def _folder_tasks(folder: Path, target: Path, suffix: str) -> list[Task]:
    sources = files.list_audio(folder)
    inside = target.resolve()
    if inside != folder.resolve():  # what an earlier run put there is no input
        sources = [path for path in sources if inside not in path.resolve().parents]
    tasks = [Task(path, _renamed(target / path.relative_to(folder), suffix), target) for path in sources]
    earlier = {task.target.resolve() for task in tasks} if suffix else set()
    return [task for task in tasks if task.source.resolve() not in earlier]


def _file_target(path: Path, output: Path | None, several: bool, suffix: str) -> Path:
    if output is None:
        return _renamed(path, suffix or DEFAULT_SUFFIX)
    if not several and not output.is_dir() and files.is_audio_name(output.name):
        if output.suffix.lower() != path.suffix.lower():
            raise JobError(f"{output}: the container is kept, so the name must end in {path.suffix}, as {path} does")
        return output
    return _renamed(output / path.name, suffix)


def _renamed(path: Path, suffix: str) -> Path:
    return path.with_name(path.stem + suffix + path.suffix)


def _check_targets(tasks: list[Task]) -> None:
    sources = {task.source.resolve(): task.source for task in tasks}
    taken: dict[Path, Path] = {}
    for task in tasks:
        target = task.target.resolve()
        if target in sources:
            raise JobError(f"{task.target}: would replace an input; give another -o or a --suffix")
        if target in taken:
            raise JobError(f"{task.target}: would hold both {taken[target]} and {task.source}; run them apart")
        taken[target] = task.source


def run(
    tasks: Sequence[Task], enhancer: Enhancer, *, overwrite: bool = False, atten_lim_db: float | None = None
) -> Iterator[Result]:
    """Enhance file after file. A file that fails is a result like any other; the rest go on.

    What exists is skipped, unless the manifest of an output folder says that its input or the settings have changed.
    """
    settings = {"model": enhancer.identity, "dtype": str(enhancer.dtype), "atten_lim_db": atten_lim_db}
    manifests = {root: Manifest(root, settings) for root in {task.root for task in tasks} if root is not None}
    for task in tasks:
        manifest = manifests.get(task.root)
        again = ""
        if task.target.exists() and not overwrite:
            again = manifest.changed(task.source, task.target) if manifest else ""
            if not again:
                yield Result(task.source, task.target, "skipped")
                continue
        began = time.perf_counter()
        try:
            result = _enhance_file(task, enhancer, atten_lim_db)
            if manifest:
                manifest.add(task.source, task.target, time.perf_counter() - began)
        except (AudioError, EnhancementError, OSError, MemoryError) as error:
            text = str(error) or type(error).__name__
            name = "" if str(task.source) in text or str(task.target) in text else f"{task.source}: "
            result = Result(task.source, None, "failed", error=name + text)
        result.elapsed_seconds, result.again = time.perf_counter() - began, again
        yield result


def _enhance_file(task: Task, enhancer: Enhancer, atten_lim_db: float | None) -> Result:
    """In blocks from file to file: a recording of any length takes the same memory."""
    with files.reading(task.source) as reader:
        encoding = reader.encoding
        given = Tally()
        task.target.parent.mkdir(parents=True, exist_ok=True)
        with files.writing(task.target, encoding) as writer:
            noisy = map(given.count, reader.blocks())
            for block in enhancer.stream(noisy, encoding.channels, encoding.sample_rate, atten_lim_db):
                writer.write(block)
    warnings = [f"{given.invalid} NaN or infinite samples taken as silence"] if given.invalid else []
    seconds = given.frames / encoding.sample_rate
    return Result(task.source, task.target, "enhanced", audio_seconds=seconds, warnings=warnings + writer.warnings)


@dataclass
class Tally:
    """What was read, block by block."""

    frames: int = 0
    invalid: int = 0  # NaN or infinite samples

    def count(self, block: np.ndarray) -> np.ndarray:
        self.frames += block.shape[1]
        self.invalid += block.size - int(np.count_nonzero(np.isfinite(block)))
        return block
