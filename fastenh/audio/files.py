"""Sound files, by soundfile (libsndfile). Samples are (channels, frames) on our side of this border."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from fastenh.atomic import fetched, replacing_locked
from fastenh.audio import compression, tags
from fastenh.audio.lengths import WIDTHS, doubts, speaks_of_sound
from fastenh.audio.listing import MEDIA_SUFFIXES
from fastenh.audio.opening import native, opened
from fastenh.audio.resampling import resample
from fastenh.audio.tags import Blocks
from fastenh.errors import ProcessingError

if TYPE_CHECKING:
    from fastenh.audio.media import TrackReader

MAX_CHANNELS = 64
RATES = 1_000, 1_000_000  # Hz: a header with less or more lies, and resampling by it would fill the memory
_RIFF_BYTES = 2**32 - 2**20  # what WAV counts in 32 bits, less room for its header
_BLOCK = 1 << 16  # frames
_SYSTEM_ERROR = 2  # libsndfile's number for what the operating system refused
_NO_FILE = 7  # its number for what is no file
_IN_BLOCKS = ("ADPCM", "GSM610", "G721", "G723")
DISK_FULL = "the disk is full"
_FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")
_WIDE = dict.fromkeys(("PCM_32", "FLOAT", "DOUBLE"), ("PCM_32", "PCM_24"))  # for containers without them
_BY_ENDING = {
    ".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".opus": "OGG", ".mp3": "MP3", ".aiff": "AIFF", ".au": "AU",
    ".caf": "CAF", ".w64": "W64", ".rf64": "RF64",
}  # fmt: skip
FORMATS = tuple(ending[1:] for ending in _BY_ENDING)


class AudioError(ProcessingError):
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
    tag_blocks: Blocks = field(default=(), compare=False, repr=False)  # for the same container: all there are
    bit_rate: int = field(default=0, compare=False)  # of MP3, Opus and Vorbis; 0: libsndfile's choice


class Reader:
    """An open sound file. ``frames`` is what the header says; ``warnings`` are complete when all is read."""

    def __init__(self, path: Path, file: soundfile.SoundFile) -> None:
        self.path, self._file, self.frames = path, file, file.frames
        self.encoding = Encoding(
            file.samplerate,
            file.channels,
            file.format,
            file.subtype,
            file.endian,
            {key: value for key, value in file.copy_metadata().items() if value},
            blocks := tags.extract(path, file.format),
            compression.bit_rate(path, file, sum(len(content) for _, content in blocks)),
        )
        self.warnings: list[str] = []
        self._ended = False

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 (C, n) to the end: the frame count of a header can be missing, an estimate, or a lie.

        Where the decoder fails in the middle (a cut FLAC), what lies before is taken, with a warning.
        Raises ``AudioError`` where nothing can be read of a file that should hold sound.
        """
        count = 0
        while not self._ended:
            block = self._next()
            count += block.shape[1]
            if block.size:
                yield block
        with _readable(self.path):
            if not count and speaks_of_sound(self.path, self._file):
                raise AudioError(f"{self.path}: {self.path.stat().st_size:,} bytes, but no sound can be read from them")
            self.warnings += doubts(self.path, self._file, count)

    def _next(self) -> np.ndarray:
        """Up to a block; soundfile's own count of frames would stop where the header says so."""
        block = np.full((_BLOCK, self.encoding.channels), np.nan, np.float32)
        try:
            with _readable(self.path):
                block = self._file.read(out=block)
            self._ended = not len(block)
        except AudioError as error:
            cause = error.__cause__
            if isinstance(cause, soundfile.LibsndfileError) and cause.code == _SYSTEM_ERROR:
                raise
            missing = np.isnan(block).any(axis=1)  # the decoder has filled the buffer up to the damage
            block = block[: missing.argmax()] if missing.any() else block
            self._ended = True
        return np.ascontiguousarray(block.T)


@contextmanager
def reading(path: Path, track: int | None = None) -> Iterator[Reader | TrackReader]:
    """Open a file; ``track`` picks one of several sound tracks, else the first is taken. Raises ``AudioError``."""
    with fetched(path) as local, _reading(local, track) as reader:
        yield reader


@contextmanager
def _reading(path: Path, track: int | None) -> Iterator[Reader | TrackReader]:
    if path.suffix.lower() in MEDIA_SUFFIXES:
        from fastenh.audio import media  # which needs what is defined here

        with media.reading(path, track) as found:
            yield found
        return
    with _readable(path):
        file = opened(path)
    with file:
        if file.channels > MAX_CHANNELS:
            raise AudioError(f"{path}: {file.channels} channels in the header, more than {MAX_CHANNELS}: not plausible")
        if not RATES[0] <= file.samplerate <= RATES[1]:
            raise AudioError(f"{path}: {file.samplerate} Hz in the header: not plausible")
        with _readable(path):
            reader = Reader(path, file)
        yield reader


def read(path: Path, warnings: list[str] | None = None) -> tuple[np.ndarray, Encoding]:
    """Return (samples float32 (C, L), encoding); ``warnings`` gets those of the file. Raises ``AudioError``."""
    with reading(path) as reader:
        empty = np.zeros((reader.encoding.channels, 0), np.float32)
        samples = np.concatenate([empty, *reader.blocks()], axis=1)
    if warnings is not None:
        warnings += [f"{path}: {warning}" for warning in reader.warnings]
    return samples, reader.encoding


def read_mono(path: Path, sample_rate: int, warnings: list[str] | None = None) -> np.ndarray:
    """Return float32 (L,) at ``sample_rate``, the mean of the channels. Otherwise as ``read``."""
    samples, encoding = read(path, warnings)
    return resample(samples.mean(axis=0, keepdims=True), encoding.sample_rate, sample_rate)[0]


def count_frames(path: Path) -> int:
    """Return the frames that the header names. Raises ``AudioError``."""
    if path.suffix.lower() in MEDIA_SUFFIXES:
        with reading(path) as reader:
            return reader.frames
    with fetched(path) as local, _readable(local), opened(local) as file:
        return file.frames


def converted(encoding: Encoding, source: Path, target: Path) -> Encoding:
    """``encoding`` for ``target``: the same where the ending is kept, else as near as the container of its ending has.

    Raises ``AudioError`` for an ending that no container has.
    """
    ending = target.suffix.lower()
    if ending == source.suffix.lower():
        return encoding
    if ending not in _BY_ENDING:
        raise AudioError(f"{target}: no such sound format; there are {', '.join(_BY_ENDING)}")
    container = _BY_ENDING[ending]
    candidates = ("OPUS",) if ending == ".opus" else (encoding.subtype, *_WIDE.get(encoding.subtype, ()))
    fitting = [subtype for subtype in candidates if soundfile.check_format(container, subtype)]
    if container != "MP3":  # libsndfile takes it for WAV, too, but only to read
        fitting = [subtype for subtype in fitting if subtype != "MPEG_LAYER_III"]
    subtype = fitting[0] if fitting else soundfile.default_subtype(container)
    rate = encoding.bit_rate if subtype == encoding.subtype else 0
    blocks = encoding.tag_blocks if container == encoding.container else ()
    return replace(encoding, container=container, subtype=subtype, endian="FILE", tag_blocks=blocks, bit_rate=rate)


class Writer:
    """A sound file that is being written. ``warnings`` are complete when the file is closed."""

    def __init__(
        self, path: Path, temporary: Path, file: soundfile.SoundFile, subtype: str, encoding: Encoding
    ) -> None:
        self.path, self.frames, self._file, self._encoding = path, 0, file, encoding
        self._temporary = temporary
        self._clips = subtype not in _FLOAT_SUBTYPES
        self._clipped = 0
        self._width = WIDTHS.get(subtype, 0) * encoding.channels if file.format in ("WAV", "WAVEX") else 0
        self.warnings: list[str] = []
        if subtype != encoding.subtype:
            length = " in this length (it comes in blocks)" if _in_blocks(encoding) else ""
            self.warnings.append(
                f"{encoding.container} cannot be written as {encoding.subtype}{length}: {subtype} taken"
            )
        if file.format == "RF64" != encoding.container:
            self.warnings.append("more than 4 GB: written as RF64, which WAV readers of today take")

    def write(self, samples: np.ndarray) -> None:
        """Write samples (C, n). Raises ``AudioError``."""
        if self._clips:
            self._clipped += int(np.count_nonzero(np.abs(samples) > 1.0))
        self.frames += samples.shape[1]
        if self.frames * self._width > _RIFF_BYTES:
            raise AudioError(f"{self.path}: longer than its input's header says, and than WAV can be; --format w64")
        with _writable(self.path, self._encoding, self._temporary):
            for first in range(0, samples.shape[1], _BLOCK):  # libvorbis overflows its stack on a long block
                self._file.write(samples[:, first : first + _BLOCK].T)

    def close(self) -> None:
        with _writable(self.path, self._encoding, self._temporary):
            self._file.close()
        if self._clipped:
            self.warnings.append(f"{self._clipped} samples clipped at full scale")


@contextmanager
def writing(path: Path, encoding: Encoding, frames: int = 0) -> Iterator[Writer]:
    """Open a file that takes its name when the context ends well: a sample format that cannot be is replaced.

    frames: how many are expected, so that a WAV of more than 4 GB becomes RF64. Raises ``AudioError`` where the
    container cannot hold it, or the disk.
    """
    subtype, container = encoding.subtype, encoding.container
    if not soundfile.check_format(container, subtype, encoding.endian) or frames % _block_frames(encoding):
        subtype = soundfile.default_subtype(container)
    if container in ("WAV", "WAVEX") and frames * encoding.channels * WIDTHS.get(subtype, 1) > _RIFF_BYTES:
        container = "RF64"
    with replacing_locked(path) as temporary:
        with _writable(path, encoding, temporary):
            file = soundfile.SoundFile(
                native(temporary),
                "w",
                encoding.sample_rate,
                encoding.channels,
                subtype=subtype,
                endian=encoding.endian,
                format=container,
                **compression.options(encoding, container, subtype),
            )
        with file:
            for key, value in encoding.tags.items() if not encoding.tag_blocks else ():
                with suppress(soundfile.LibsndfileError):  # not every container holds every tag
                    setattr(file, key, value)
            writer = Writer(path, temporary, file, subtype, encoding)
            yield writer
            writer.close()
        if encoding.tag_blocks:
            with _writable(path, encoding, temporary):
                tags.insert(temporary, container, encoding.tag_blocks)
        _check_written(path, temporary, writer.frames)


def _block_frames(encoding: Encoding) -> int:
    """Frames in the smallest file of this encoding that is not empty: ADPCM and GSM come in whole blocks."""
    if not _in_blocks(encoding):
        return 1
    file, one = io.BytesIO(), np.zeros((1, encoding.channels), np.float32)
    try:
        soundfile.write(file, one, encoding.sample_rate, encoding.subtype, encoding.endian, encoding.container)
        file.seek(0)
        return max(soundfile.info(file).frames, 1)
    except soundfile.LibsndfileError:  # no such file can be: said when it is opened for writing
        return 1


def _in_blocks(encoding: Encoding) -> bool:
    return any(name in encoding.subtype for name in _IN_BLOCKS)


def _check_written(path: Path, temporary: Path, frames: int) -> None:
    """libsndfile says nothing when the disk is full as a file is closed. Raises ``AudioError``."""
    try:
        found = count_frames(temporary)
    except AudioError as error:
        why = _obstacle(temporary) if frames else "its container cannot hold a recording of no samples"
        raise AudioError(f"{path}: cannot be written; {why or 'what was written cannot be read'}") from error
    if found < frames:
        raise AudioError(f"{path}: {_obstacle(temporary) or f'only {found} of {frames} frames could be written'}")
    if found > frames:
        raise AudioError(
            f"{path}: its sample format comes in blocks, {found} frames instead of {frames}; --format flac"
        )


def _obstacle(path: Path) -> str:
    """Why nothing can be added to a file, in the words of the system, which libsndfile keeps to itself."""
    try:
        with path.open("ab") as file:
            file.write(bytes(1 << 16))
    except OSError as error:
        return DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)
    return ""


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
def _writable(path: Path, encoding: Encoding, temporary: Path) -> Iterator[None]:
    try:
        yield
    except (soundfile.LibsndfileError, ValueError, TypeError, AssertionError) as error:
        if why := _obstacle(temporary):  # soundfile asserts that all was written
            raise AudioError(f"{path}: cannot be written ({why})") from error
        what = f"{encoding.container}/{encoding.subtype}, {encoding.sample_rate} Hz, {encoding.channels} channels"
        raise AudioError(f"{path}: cannot be written as {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    if isinstance(error, soundfile.LibsndfileError):
        text = "" if error.code == _NO_FILE else error.error_string  # said of any MP3 that cannot be read
    else:
        text = str(error)
    return text.strip().rstrip(".") or "damaged, or of a kind that libsndfile does not know"
