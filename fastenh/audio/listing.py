"""Which files of a folder are sound, by their names."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

_CONTAINERS = "wav wave rf64 w64 flac ogg oga opus mp3 aif aiff aifc au snd caf"
_UNREAD = "m4a m4b mp4 m4v mov webm weba mkv mka avi wma wmv aac ac3 dts amr 3gp ape wv tta mpc spx dsf dff ra rm flv"
SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())
UNREAD_SUFFIXES = frozenset(f".{name}" for name in _UNREAD.split())  # sound, too, of kinds that libsndfile lacks
UNREAD_ADVICE = "nothing here reads them yet; ffmpeg -i NAME.m4a NAME.flac converts one"
SKIP_MARKER = ".nomedia"  # the media scanners' convention: a folder that holds such a file is passed over


def list_audio(
    folder: Path, on_error: Callable[[OSError], None] | None = None, passed: Counter[str] | None = None
) -> list[Path]:
    """The sound files below a folder, sorted; hidden files and folders, and those with a ``.nomedia``, left out.

    Links to folders are not followed; ``on_error`` is told of folders that cannot be looked into, and ``passed`` counts
    by ending (".m4a") the files that hold sound and are passed over, since nothing here reads them.
    """
    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=on_error):
        if SKIP_MARKER in names and Path(root) != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        if passed is not None:
            seen = (Path(name).suffix.lower() for name in names if not name.startswith("."))
            passed.update(ending for ending in seen if ending in UNREAD_SUFFIXES)
        paths = (Path(root, name) for name in names if is_audio_name(name))
        found += [path for path in paths if not _is_special(path)]
    return sorted(found)


def _is_special(path: Path) -> bool:
    """A pipe, socket or device: to open one can wait for ever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a dangling link, say: reported when it is opened
        return False


def is_audio_name(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
