"""What earlier runs put into an output folder, and who is at work in it.

By it a job that was stopped goes on, what changed is made again, and several processes share the files of a folder.
In a folder of the system it is one file, to which each process adds lines and which it locks; in an object store, which
has neither, a key for each file (``remote_manifest.py``).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastenh.errors import printable
from fastenh.remote import is_remote, stamp

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows: every claim is granted there
    fcntl = None

log = logging.getLogger("fastenh")
NAME = ".fastenh-manifest.jsonl"
KINDS = {"target": str, "written": list, "source": str, "read": list, "settings": dict}
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class Manifest(ABC):
    """An entry for each finished file, made when it is finished.

    It holds the target (relative to the folder), the input, sizes and times of change of both, the settings, and what
    its job found: who continues that job, as a worker in the place of a lost one does, takes the file for its own.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], job: str) -> None:
        """job: a name that the processes of one job have in common, and no other job has."""
        self.folder, self.settings, self.job = folder, settings, job
        self._damaged = self._warned = False
        self._lock = threading.Lock()

    @abstractmethod
    def claim(self, target: Path) -> AbstractContextManager[bool]:
        """Claim ``target``: False where another process is at work on it; else it is ours until the context ends.

        It keeps out other processes alone: within one, each target is to be claimed once at a time. Raises ``OSError``
        and ``RemoteError`` where the folder cannot be written.
        """

    @abstractmethod
    def is_recent(self, target: Path) -> bool:
        """Whether ``target`` was finished since this job began."""

    @abstractmethod
    def entry(self, target: Path) -> dict[str, Any] | None:
        """What is known of ``target``, if it is."""

    @abstractmethod
    def keep(self, entry: dict[str, Any]) -> None:
        """Note an entry for whoever comes."""

    @abstractmethod
    def close(self) -> None:
        """Nothing is claimed any more."""

    def changed(self, source: Path, target: Path) -> str:
        """Why ``target``, which exists, must be made again; nothing where it is still valid, or not from here."""
        entry = self.entry(target)
        if entry is None and self._damaged:
            self._warn()
            return "the manifest is damaged"
        if entry is None or entry["written"] != stamp(target):
            return ""  # somebody else's, or changed by somebody since: kept
        if (entry["source"], entry["read"]) != (str(source.resolve()), stamp(source)):
            return "the input changed"
        before = entry["settings"]
        differing = [key for key in self.settings | before if self.settings.get(key) != before.get(key)]
        return f"other settings: {', '.join(differing)}" if differing else ""

    def made(self, target: Path) -> tuple[float, list[str]] | None:
        """The seconds of audio and the warnings of a file that this job made; nothing of one that it did not."""
        entry = self.entry(target)
        if entry is None or entry.get("job") != self.job or entry["written"] != stamp(target):
            return None
        return entry["audio_seconds"], entry["warnings"]

    def add(
        self, source: Path, target: Path, seconds: float, audio_seconds: float = 0.0, warnings: Sequence[str] = ()
    ) -> None:
        """Note a finished file."""
        entry: dict[str, Any] = {"target": self.key(target), "written": stamp(target)}
        entry |= {"source": str(source.resolve()), "read": stamp(source), "seconds": round(seconds, 3)}
        entry |= {"audio_seconds": audio_seconds, "warnings": list(warnings), "job": self.job}
        self.keep(entry | {"settings": self.settings})

    def key(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()

    def _warn(self) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            path = printable(str(self.folder / NAME))
            log.warning("warning: %s is damaged: outputs that it does not tell of are made again", path)


def open_manifest(folder: Path, settings: dict[str, Any], job: str) -> Manifest:
    """Open the manifest of an output folder, wherever that is."""
    if is_remote(folder):
        from fastenh.enhance.remote_manifest import RemoteManifest  # which needs what is defined here

        return RemoteManifest(folder, settings, job)
    return FileManifest(folder, settings, job)


class FileManifest(Manifest):
    """A file with a line of JSON for each entry; the last one of a target counts.

    Other processes may add lines to the same file: each is written in one piece, and read with the next claim.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], job: str = "") -> None:
        super().__init__(folder, settings, job)
        self.recent: set[str] = set()  # targets that were finished since this object is there, by whichever process
        self._entries: dict[str, dict[str, Any]] = {}
        self._file: BinaryIO | None = None
        self._end = 0  # what has been read so far
        self._begin()

    def _begin(self) -> None:
        path = self.folder / NAME
        if path.is_symlink():
            self._damaged = True
            return
        with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
            text = file.read()
            self._end = len(text)
            self._take(text)

    @contextmanager
    def claim(self, target: Path) -> Iterator[bool]:
        """The claim is a lock of the system on a byte of the manifest that stands for the target (beyond its end), so
        it ends with its process, however that ends."""
        file = self._opened()
        place = int.from_bytes(hashlib.sha256(os.fsencode(self.key(target))).digest()[:7], "big") + (1 << 60)
        mine = _lock(file, place)
        try:
            if mine:
                self._refresh(file)
            yield mine
        finally:
            if mine:
                _unlock(file, place)

    def is_recent(self, target: Path) -> bool:
        return self.key(target) in self.recent

    def entry(self, target: Path) -> dict[str, Any] | None:
        return self._entries.get(self.key(target))

    def keep(self, entry: dict[str, Any]) -> None:
        # a name that is no UTF-8 is written as JSON writes such characters: \udce9
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        file = self._opened()
        with self._lock:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            cut_short = file.read(1) not in (b"\n", b"")
            file.write(b"\n" + line if cut_short else line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _opened(self) -> BinaryIO:
        """The file to add to. A link in its place is removed: it could lead anywhere."""
        with self._lock:
            if self._file is None:
                path = self.folder / NAME
                self.folder.mkdir(parents=True, exist_ok=True)
                if path.is_symlink():
                    path.unlink()
                self._file = open(path, "a+b", buffering=0, opener=_open_no_link)  # noqa: SIM115 (in close)
            return self._file

    def _refresh(self, file: BinaryIO) -> None:
        """Take what was added since."""
        with self._lock:
            file.seek(self._end)
            text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._end += len(text)
            self.recent |= self._take(text)

    def _take(self, text: bytes) -> set[str]:
        """The targets in lines of the manifest; a line that cannot be read is damage."""
        found = set()
        for line in text.splitlines(keepends=True):
            entry = parse(line)
            if entry is not None:
                self._entries[entry["target"]] = entry
                found.add(entry["target"])
            elif line.strip():
                self._damaged = True
        return found


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | _NO_LINK, 0o666)


def _lock(file: BinaryIO, place: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _unlock(file: BinaryIO, place: int) -> None:
    if fcntl is not None:
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_UN, 1, place)


def parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; nothing where it is none. A line may be cut short by whatever stopped the run."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(entry, dict)
    return entry if whole and all(isinstance(entry.get(key), kind) for key, kind in KINDS.items()) else None
