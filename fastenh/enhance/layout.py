"""Which file becomes which: the inputs of a job and the names of its outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastenh.audio import listing
from fastenh.errors import UsageError
from fastenh.remote import is_remote, reported

DEFAULT_SUFFIX = "-enhanced"


class JobError(UsageError, ValueError):
    """A job that cannot be laid out: the options do not say where each file shall go."""


@dataclass(frozen=True)
class Task:
    source: Path
    target: Path
    root: Path | None = None  # the output folder that keeps a manifest

    def leads_out(self) -> bool:
        """Whether the target would lie outside of ``root``, since a folder between them is a link."""
        return self.root is not None and not _real(self.target.parent).is_relative_to(_real(self.root))


@dataclass
class Layout:
    """The files of a job; inputs that are not there or cannot be used, each with the reason; and what was passed over.

    ``passed`` counts, by ending, files in the folders that hold sound of kinds that nothing here reads.
    """

    tasks: list[Task] = field(default_factory=list)
    bad: list[tuple[Path, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Names:
    """How outputs are named: ``output`` folder or file, ``suffix`` behind the stem, ``ending`` (".flac") if another."""

    output: Path | None = None
    suffix: str = ""
    ending: str | None = None

    def rename(self, path: Path, suffix: str | None = None) -> Path:
        return path.with_name(path.stem + (suffix or self.suffix) + (self.ending or path.suffix))


def lay_out(inputs: Sequence[Path], names: Names) -> Layout:
    """Decide which file becomes which.

    Without ``output`` a folder becomes its sibling FOLDER-enhanced and a file NAME-enhanced.EXT beside it. In an
    ``output`` folder the trees of the inputs are kept, those of several folders below their own names.
    Raises ``JobError`` where two inputs would share an output, or an output would replace an input.
    """
    layout = Layout()
    several = len(inputs) > 1
    for path in inputs:
        with reported(path):
            is_folder, is_file = path.is_dir(), path.is_file()
        if is_folder:
            layout.tasks += _folder_tasks(path, _folder_target(path, names, several), names, layout)
        elif not is_file:
            layout.bad.append((path, f"{path}: no such file or folder"))
        elif advice := listing.advice([path.suffix.lower()]):
            layout.bad.append((path, f"{path}: {advice}"))
        else:
            target = _file_target(path, names, several)
            layout.tasks.append(Task(path, target, names.output if names.output in target.parents else None))
    _check_targets(layout.tasks)
    return layout


def _folder_target(folder: Path, names: Names, several: bool) -> Path:
    named = folder if folder.name not in ("", "..") else _real(folder)
    if names.output is not None:
        return names.output / named.name if several else names.output
    if not named.name:
        raise JobError(f"{folder}: no place beside it for the output; give -o")
    return named.with_name(named.name + DEFAULT_SUFFIX)


def _folder_tasks(folder: Path, target: Path, names: Names, layout: Layout) -> list[Task]:
    def unreadable(error: OSError) -> None:
        layout.bad.append((Path(error.filename), f"{error.filename}: cannot be looked into ({error.strerror})"))

    sources = listing.list_audio(folder, unreadable, layout.passed)
    inside = _real(target)
    if inside != _real(folder):  # what an earlier run put there is no input
        sources = [path for path in sources if inside not in _real(path).parents]
    tasks = [Task(path, names.rename(target / path.relative_to(folder).as_posix()), target) for path in sources]
    earlier = {_real(task.target) for task in tasks} if names.suffix else set()
    return [task for task in tasks if _real(task.source) not in earlier]


def _file_target(path: Path, names: Names, several: bool) -> Path:
    output, ending = names.output, names.ending or path.suffix
    if output is None:
        return names.rename(path, names.suffix or DEFAULT_SUFFIX)
    with reported(output):
        is_folder = output.is_dir()
    if not several and not is_folder and listing.is_audio_name(output.name):
        if output.suffix.lower() != ending.lower():
            raise JobError(f"{output}: the name must end in {ending}; --format {output.suffix[1:]} makes another one")
        return output
    return names.rename(output / path.name)


def _check_targets(tasks: list[Task]) -> None:
    sources = {_real(task.source) for task in tasks}
    taken: dict[Path, Path] = {}
    for task in tasks:
        target = _real(task.target)
        if target in sources:
            raise JobError(f"{task.target}: would replace an input; give another -o or a --suffix")
        if target in taken:
            raise JobError(f"{task.target}: would hold both {taken[target]} and {task.source}; run them apart")
        taken[target] = task.source


def _real(path: Path) -> Path:
    if is_remote(path):
        return path.resolve()
    return Path(os.path.realpath(path))  # Path.resolve raises where links go round in a circle
