"""What a job would do to a file, without doing it: ``fastenh enhance --dry-run``."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastenh import remote
from fastenh.atomic import fetched
from fastenh.audio import files, remux
from fastenh.audio.files import AudioError, Reader
from fastenh.audio.media import TrackReader
from fastenh.enhance.layout import Task


def rehearse(task: Task, track: int | None, bit_rate: int | None) -> None:
    """Raises what a job would: where nothing can be read, or not be written in this form or at this place."""
    with tempfile.TemporaryDirectory() as folder:
        rehearsed = Path(folder, task.target.name)
        try:
            if remux.rewrites(task.target):
                with fetched(task.source) as source:
                    remux.rewrite(source, rehearsed, _beginning, track, bit_rate, sound_alone=True)
            else:
                with files.reading(task.source, track) as reader:
                    encoding = files.converted(reader.encoding, task.source, task.target)
                    files.write(rehearsed, next(_beginning(reader)), encoding)
        except AudioError as error:
            raise AudioError(str(error).replace(str(rehearsed), str(task.target))) from error
    if remote.is_remote(task.target):  # whether one may write there is known when one does
        return
    place = next(folder for folder in task.target.parents if folder.exists())
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _beginning(reader: Reader | TrackReader) -> Iterator[np.ndarray]:
    yield next(reader.blocks(), np.zeros((reader.encoding.channels, 0), np.float32))
