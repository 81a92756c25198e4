"""Files that are replaced as a whole or not at all.

Until the new content is complete it is in a hidden temporary file beside the target. ``replacing`` guarantees that

- whoever opens the target finds all of the old content or all of the new, at any time;
- an error while writing leaves the target as it was, and no temporary file;
- a process that is killed leaves the target as it was, and a temporary file. Those of ``replacing_locked`` can be told
  from the ones that are still being written, and ``remove_abandoned`` removes them.

After a power failure the new content may be lost: nothing waits for the disk. A target that is a link is replaced
itself, not what it points to. Two of the libraries in use write such files, and neither will do: safetensors begins to
with 0.8, and then lets their owner alone read them; click replaces the target after an error, too.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastenh import remote
from fastenh.errors import ProcessingError

_creating = threading.RLock()  # a signal may call abandon() in the thread that holds it
_unfinished: set[Path] = set()
_PREFIX, _LOCKED_PREFIX = ".fastenh-new-", remote.PART


@contextmanager
def replacing(path: Path, mode: int | None = None, prefix: str = _PREFIX) -> Iterator[Path]:
    """Yield a temporary file to write to or to replace, which becomes ``path`` when the context ends without an error.

    Its name begins with ``prefix`` and has the suffix of ``path``, whose folder must exist. mode: the permissions of
    the file; unless given, those that the umask leaves, as for any new file. Raises ``OSError`` and ``RemoteError``.
    """
    if remote.is_remote(path):
        with _temporary(None, prefix, path.suffix) as temporary:
            yield temporary
            remote.store(temporary, path)
        return
    with _temporary(path.parent, prefix, path.suffix) as temporary:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK if mode is None else mode)
        temporary.replace(path)


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """Yield a local copy of a remote file, which ends with the context; a local file is yielded itself.

    Errors that name the copy name ``path`` instead. Raises ``RemoteError``.
    """
    if not remote.is_remote(path):
        yield path
        return
    with _temporary(None, _PREFIX, path.suffix) as copy:
        try:
            remote.get(path, copy)
            yield copy
        except ProcessingError as error:
            raise type(error)(str(error).replace(str(copy), str(path))) from error


@contextmanager
def _temporary(folder: Path | None, prefix: str, suffix: str) -> Iterator[Path]:
    with _creating:
        handle, name = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=suffix)
        temporary = Path(name)
        _unfinished.add(temporary)
    os.close(handle)  # Windows replaces no open file
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextmanager
def replacing_locked(path: Path) -> Iterator[Path]:
    """Do as ``replacing``, in a folder that ``remove_abandoned`` may be called for meanwhile.

    The lock is on the temporary file, which therefore must be written to and not be replaced (safetensors does that).
    """
    with replacing(path, prefix=_LOCKED_PREFIX) as temporary, temporary.open("r+b") as file:
        with suppress(OSError):  # a file system without locks
            _lock(file.fileno())
        yield temporary


def abandon() -> None:
    """Remove the temporary files of this process, which must end at once: whoever begins a new one waits for ever."""
    _creating.acquire()
    for path in list(_unfinished):
        with suppress(OSError):
            path.unlink()


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of runs that were killed; those of runs that go on are locked, and stay."""
    if remote.is_remote(folder):
        remote.remove_abandoned(folder)
        return
    for path in folder.glob(f"{_LOCKED_PREFIX}*"):
        with suppress(OSError), path.open("rb") as file:
            _lock(file.fileno())
            path.unlink()


def _lock(handle: int) -> None:
    """Raises ``OSError`` where another process, or another handle of this one, has the lock."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:  # Windows, where an open file cannot be removed anyway
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # asked for once: to ask is to change it for a moment, in all threads
