"""Sound files, by soundfile (libsndfile). Samples are (channels, frames) on our side of this border."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from fastenh.audio.resampling import resample

_CONTAINERS = "wav wave rf64 w64 flac ogg oga opus mp3 aif aiff aifc au snd caf"
SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())
SKIP_MARKER = ".nomedia"  # the media scanners' convention: a folder that holds such a file is passed over
MAX_CHANNELS = 64
_BLOCK = 1 << 16  # frames
_FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")


class AudioError(Exception):
    """A sound file that cannot be read or written; the message names it."""


@dataclass(frozen=True)
class Encoding:
    """How a file stores its samples: what is kept when its enhanced version is written."""

    sample_rate: int
    channels: int
    container: str  # libsndfile's names: "WAV", "FLAC", "OGG", "MP3", ...
    subtype: str  # "PCM_16", "FLOAT", "VORBIS", ...
    endian: str = "FILE"
    tags: dict[str, str] = field(default_factory=dict)


def list_audio(folder: Path) -> list[Path]:
    """The sound files below a folder, sorted; hidden files and folders, and those with a ``.nomedia``, left out."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        if SKIP_MARKER in names and Path(root) != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if is_audio_name(name)]
    return sorted(found)


def is_audio_name(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


class Reader:
    """An open sound file."""

    def __init__(self, path: Path, file: soundfile.SoundFile) -> None:
        self.path, self._file = path, file
        tags = {key: value for key, value in file.copy_metadata().items() if value}
        self.encoding = Encoding(file.samplerate, file.channels, file.format, file.subtype, file.endian, tags)

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 (C, n) to the end: the frame count of a header can be missing, an estimate, or a lie.

        Raises ``AudioError``.
        """
        while True:
            with _readable(self.path):
                block = self._file.read(_BLOCK, dtype="float32", always_2d=True)
            if not block.size:
                return
            yield np.ascontiguousarray(block.T)


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Raises ``AudioError``."""
    with _readable(path):
        file = soundfile.SoundFile(path)
    with file:
        if file.channels > MAX_CHANNELS:
            raise AudioError(f"{path}: {file.channels} channels in the header, more than {MAX_CHANNELS}: not plausible")
        with _readable(path):
            reader = Reader(path, file)
        yield reader


def read(path: Path) -> tuple[np.ndarray, Encoding]:
    """(samples float32 (C, L), encoding). Raises ``AudioError``."""
    with reading(path) as reader:
        empty = np.zeros((reader.encoding.channels, 0), np.float32)
        return np.concatenate([empty, *reader.blocks()], axis=1), reader.encoding


def read_mono(path: Path, sample_rate: int) -> np.ndarray:
    """float32 (L,) at ``sample_rate``: the mean of the channels. Raises ``AudioError``."""
    samples, encoding = read(path)
    return resample(samples.mean(axis=0, keepdims=True), encoding.sample_rate, sample_rate)[0]


def count_frames(path: Path) -> int:
    """Frames by the header. Raises ``AudioError``."""
    with _readable(path), soundfile.SoundFile(path) as file:
        return file.frames


class Writer:
    """A sound file that is being written. ``warnings`` are complete when the file is closed."""

    def __init__(self, path: Path, file: soundfile.SoundFile, subtype: str, encoding: Encoding) -> None:
        self.path, self._file, self._encoding = path, file, encoding
        self._clips = subtype not in _FLOAT_SUBTYPES
        self._clipped = 0
        self.warnings: list[str] = []
        if subtype != encoding.subtype:
            self.warnings.append(f"{encoding.container} cannot be written as {encoding.subtype}: {subtype} taken")

    def write(self, samples: np.ndarray) -> None:
        """(C, n). Raises ``AudioError``."""
        if self._clips:
            self._clipped += int(np.count_nonzero(np.abs(samples) > 1.0))
        with _writable(self.path, self._encoding):
            for first in range(0, samples.shape[1], _BLOCK):  # libvorbis overflows its stack on a long block
                self._file.write(samples[:, first : first + _BLOCK].T)

    def close(self) -> None:
        with _writable(self.path, self._encoding):
            self._file.close()
        if self._clipped:
            self.warnings.append(f"{self._clipped} samples clipped at full scale")


@contextmanager
def writing(path: Path, encoding: Encoding) -> Iterator[Writer]:
    """A file that takes its name when the context ends well: a sample format that cannot be is replaced.

    Raises ``AudioError`` where the container cannot hold it.
    """
    subtype = encoding.subtype
    if not soundfile.check_format(encoding.container, subtype, encoding.endian):
        subtype = soundfile.default_subtype(encoding.container)
    with _replacing(path) as temporary:
        with _writable(path, encoding):
            file = soundfile.SoundFile(
                temporary,
                "w",
                encoding.sample_rate,
                encoding.channels,
                subtype=subtype,
                endian=encoding.endian,
                format=encoding.container,
            )
        with file:
            for key, value in encoding.tags.items():
                with suppress(soundfile.LibsndfileError):  # not every container holds every tag
                    setattr(file, key, value)
            writer = Writer(path, file, subtype, encoding)
            yield writer
            writer.close()


def write(path: Path, samples: np.ndarray, encoding: Encoding) -> list[str]:
    """Write (C, L) samples atomically. Returns warnings: a sample format replaced, samples clipped.

    Raises ``AudioError`` where the container cannot hold them.
    """
    with writing(path, encoding) as writer:
        writer.write(samples)
    return writer.warnings


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        raise AudioError(f"{path}: cannot be read as sound ({_reason(error)})") from error


@contextmanager
def _writable(path: Path, encoding: Encoding) -> Iterator[None]:
    try:
        yield
    except (soundfile.LibsndfileError, ValueError, TypeError) as error:
        what = f"{encoding.container}/{encoding.subtype}, {encoding.sample_rate} Hz, {encoding.channels} channels"
        raise AudioError(f"{path}: cannot be written as {what} ({_reason(error)})") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name when the context ends well, and goes if it does not."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".fastenh-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return text.strip().rstrip(".")
