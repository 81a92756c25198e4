"""Files of an object store (``s3://bucket/key``, ``gs://``, ``memory://`` ...), by fsspec: the extra ``cloud``.

A remote path is a ``UPath`` (universal_pathlib), which has the interface of ``pathlib.Path`` but is none; elsewhere it
is annotated as one. What needs a file of the system is given a local copy (``atomic.fetched``); what is written is made
locally and stored when it is complete (``store``, by ``atomic.replacing``).
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from fastenh.errors import ProcessingError, UsageError

PART = ".fastenh-part-"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_ABANDONED = 3600  # seconds: a temporary key is there while the store copies it


class RemoteError(ProcessingError):
    """A store that does not do what was asked; the message names the path."""


class RemoteUsageError(UsageError, ValueError):
    """An address that nothing here can open."""


def is_address(text: str) -> bool:
    return _ADDRESS.match(text) is not None


def parse(text: str) -> Path:
    """The path that an address names. Raises ``RemoteUsageError``."""
    try:
        from upath import UPath

        path = UPath(text)
        path.fs  # noqa: B018 (looks for what speaks this protocol)
    except ImportError as error:
        raise RemoteUsageError(f"{text}: needs the extra: pip install 'fastenh[cloud]' ({error})") from error
    except (ValueError, TypeError, OSError) as error:
        raise RemoteUsageError(f"{text}: {_first_line(error)}") from error
    if isinstance(path, Path) and not text.lower().startswith(("file:", "local:")):
        raise RemoteUsageError(f"{text}: no such kind of store")
    return cast(Path, path)


def is_remote(path: Path) -> bool:
    return not isinstance(path, Path)


def opened(path: Path) -> tuple[Any, str]:
    """The file system of fsspec that holds a remote path, and its key there."""
    remote = cast(Any, path)
    return remote.fs, remote.path


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """What a store raises becomes ``RemoteError`` with one line about ``path``, if that is remote."""
    try:
        yield
    except (ProcessingError, UsageError):
        raise
    except Exception as error:  # each store has errors of its own: credentials, network, limits
        if not is_remote(path):
            raise
        raise RemoteError(f"{path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__


def make_folder(folder: Path) -> None:
    """Stores have no folders: a key is enough (and nobody wants a bucket made of a mistyped name)."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def stamp(path: Path) -> list[Any]:
    """What tells whether a file is still the same: its size and time of change, or what its store has for that."""
    if not is_remote(path):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    fs, key = opened(path)
    with reported(path):
        about = fs.info(key)
    marks = ("ETag", "etag", "LastModified", "mtime", "updated", "created")
    return [about["size"], next((str(about[mark]) for mark in marks if mark in about), "")]


def get(path: Path, copy: Path) -> None:
    """Raises ``RemoteError``."""
    fs, key = opened(path)
    with reported(path):
        fs.get_file(key, str(copy))


def store(file: Path, path: Path) -> None:
    """Store ``file`` under a temporary key beside ``path`` and copy that to the final one, which appears as a whole.

    An error leaves neither. A process that dies in between leaves the temporary key, for ``remove_abandoned``. Raises
    ``RemoteError``.
    """
    fs, key = opened(path)
    folder, _, name = key.rpartition("/")
    temporary = f"{folder}/{PART}{uuid.uuid4().hex}{Path(name).suffix}"
    with reported(path):
        try:
            fs.put_file(str(file), temporary)
            fs.cp_file(temporary, key)
        finally:
            with suppress(Exception):
                fs.rm_file(temporary)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary keys below ``folder`` of processes that died an hour ago or more."""
    fs, key = opened(folder)
    with reported(folder):
        for found in _keys(fs, key):
            if Path(found).name.startswith(PART):
                with suppress(FileNotFoundError):
                    if time.time() - fs.modified(found).timestamp() > _ABANDONED:
                        fs.rm_file(found)
        fs.invalidate_cache()  # others may write there: what exists is asked for again


def keys(folder: Path) -> list[str]:
    """The keys below ``folder``, relative to it. Raises ``RemoteError``."""
    fs, key = opened(folder)
    with reported(folder):
        return [found[len(key.rstrip("/")) :].lstrip("/") for found in _keys(fs, key)]


def _keys(fs: Any, key: str) -> list[str]:
    try:
        return list(fs.find(key))
    except FileNotFoundError:
        return []
