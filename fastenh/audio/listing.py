"""Which files of a folder are sound, by their names."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import util
from pathlib import Path

from fastenh import remote

_CONTAINERS = "wav wave rf64 w64 flac ogg oga opus mp3 aif aiff aifc au snd caf"
_MEDIA = "m4a m4b mp4 m4v mov mkv mka webm weba wma wmv aac"
_UNREAD = "avi ac3 dts amr 3gp ape wv tta mpc spx dsf dff ra rm flv"
SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())
MEDIA_SUFFIXES = frozenset(f".{name}" for name in _MEDIA.split())  # by PyAV, the extra ``media``
UNREAD_SUFFIXES = frozenset(f".{name}" for name in _UNREAD.split())  # sound, too, that nothing here reads
UNREAD_ADVICE = "nothing here reads them yet; ffmpeg -i NAME.avi NAME.flac converts one"
MEDIA_ADVICE = "needs the extra: pip install -c constraints.txt -e '.[media]'"
SKIP_MARKER = ".nomedia"  # the media scanners' convention: a folder that holds such a file is skipped


def list_audio(
    folder: Path, on_error: Callable[[OSError], None] | None = None, passed: Counter[str] | None = None
) -> list[Path]:
    """List the sound files below a folder, sorted; hidden files and folders, and those with a ``.nomedia``, left out.

    Links to folders are not followed; ``on_error`` is told of folders that cannot be looked into, and ``passed`` counts
    by ending (".m4a") the files that hold sound and are passed over, since nothing here reads them.
    """
    if remote.is_remote(folder):
        return _list_remote(folder, passed)
    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=on_error):
        if SKIP_MARKER in names and Path(root) != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        if passed is not None:
            passed.update(_unread(names))
        paths = (Path(root, name) for name in names if is_audio_name(name))
        found += [path for path in paths if not _is_special(path)]
    return sorted(found)


def _list_remote(folder: Path, passed: Counter[str] | None) -> list[Path]:
    """As ``list_audio``, from one listing of all keys."""
    keys = [key for key in remote.keys(folder) if not any(part.startswith(".") for part in key.split("/")[:-1])]
    marked = tuple(key.removesuffix(SKIP_MARKER) for key in keys if key.endswith("/" + SKIP_MARKER))
    keys = [key for key in keys if not key.startswith(marked)]
    if passed is not None:
        passed.update(_unread(key.rpartition("/")[2] for key in keys))
    return sorted(folder / key for key in keys if is_audio_name(key.rpartition("/")[2]))


def _unread(names: Iterable[str]) -> Iterator[str]:
    """The endings of files that hold sound and are passed over."""
    seen = (Path(name).suffix.lower() for name in names if not name.startswith("."))
    return (ending for ending in seen if ending in UNREAD_SUFFIXES or lacks_media(ending))


def _is_special(path: Path) -> bool:
    """A pipe, socket or device: to open one can wait for ever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a dangling link, say: reported when it is opened
        return False


def is_audio_name(name: str) -> bool:
    ending = Path(name).suffix.lower()
    known = ending in SUFFIXES or (ending in MEDIA_SUFFIXES and has_media())
    return known and not name.startswith(".")


@cache
def has_media() -> bool:
    """Whether PyAV is installed."""
    return util.find_spec("av") is not None


def lacks_media(ending: str) -> bool:
    """Whether files of this ending would be read if PyAV was installed."""
    return ending in MEDIA_SUFFIXES and not has_media()


def advice(endings: Iterable[str]) -> str:
    """What to do about files that are passed over, of which these are the endings."""
    endings = set(endings)
    parts = [MEDIA_ADVICE] if any(map(lacks_media, endings)) else []
    return "; ".join(parts + ([UNREAD_ADVICE] if endings & UNREAD_SUFFIXES else []))
