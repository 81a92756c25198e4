"""Sound through pipes, as it comes: WAV, or samples without a header. Nothing is kept, and nothing is sought.

libsndfile reads both from a pipe. It writes no WAV to one, since a WAV has its length at the front; here the length is
taken from the input's header, and where that has none, it is the largest number, as other programs write it.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile

from fastenh.audio.files import MAX_CHANNELS, RATES, AudioError, Encoding
from fastenh.audio.lengths import WIDTHS

try:
    fcntl: Any = importlib.import_module("fcntl")
    termios: Any = importlib.import_module("termios")
except ImportError:  # Windows: as much is read as is asked for
    fcntl = None

RAW_FORMATS = {
    "u8": "PCM_U8", "s8": "PCM_S8", "s16le": "PCM_16", "s24le": "PCM_24", "s32le": "PCM_32", "f32le": "FLOAT",
    "f64le": "DOUBLE", "mulaw": "ULAW", "alaw": "ALAW",
}  # fmt: skip
_WAV_CODES = {"PCM_U8": 1, "PCM_16": 1, "PCM_24": 1, "PCM_32": 1, "FLOAT": 3, "DOUBLE": 3, "ALAW": 6, "ULAW": 7}
_SECONDS = 0.1  # of a block
_UNKNOWN = 2**32 - 1
_NO_LENGTH = 2**31 - 2**16  # bytes: programs that did not know the length write more


@dataclass(frozen=True)
class Raw:
    """Samples without a header; ``kind`` is one of ``RAW_FORMATS``."""

    sample_rate: int
    channels: int
    kind: str


class PipeReader:
    """Reads from a pipe. ``frames`` is the header's, 0 for unknown; ``warnings`` are complete when all is read."""

    def __init__(self, file: soundfile.SoundFile, handle: int = -1) -> None:
        self._file, self._handle = file, handle
        self.encoding = Encoding(file.samplerate, file.channels, file.format, file.subtype)
        size = file.frames * file.channels * WIDTHS.get(file.subtype, 1)
        self.frames = file.frames if 0 < size < _NO_LENGTH else 0
        self.warnings: list[str] = []

    def blocks(self, seconds: float = _SECONDS) -> Iterator[np.ndarray]:
        """Yield float32 (C, n), so many seconds at a time, or up to a second of what is there already. Raises
        ``AudioError``."""
        size, count = max(1, round(seconds * self.encoding.sample_rate)), 0
        buffer = np.empty((max(size, self.encoding.sample_rate), self.encoding.channels), np.float32)
        while True:
            try:
                block = self._file.read(out=buffer[: max(size, self._waiting(len(buffer)))])
            except soundfile.LibsndfileError as error:
                raise AudioError(f"standard input: cannot be read any further ({error.error_string})") from error
            if not len(block):
                break
            count += len(block)
            yield block.T.copy()  # the buffer is used again
        if self.frames and count != self.frames:
            self.warnings.append(f"the header says {self.frames} frames, {count} were there")

    def _waiting(self, most: int) -> int:
        """Frames that can be read without a wait, as far as the system says."""
        width = WIDTHS.get(self.encoding.subtype, 0) * self.encoding.channels
        if fcntl is None or not width:
            return 0
        try:
            (count,) = struct.unpack("i", fcntl.ioctl(self._handle, termios.FIONREAD, bytes(4)))
        except OSError:  # no pipe
            return 0
        return int(min(count // width, most))


@contextmanager
def reading(handle: int, raw: Raw | None = None) -> Iterator[PipeReader]:
    """Open the file descriptor ``handle``, which stays open. Raises ``AudioError``."""
    options = {}
    if raw is not None:
        subtype = RAW_FORMATS[raw.kind]
        options = {"samplerate": raw.sample_rate, "channels": raw.channels, "subtype": subtype, "format": "RAW"}
        options |= {"endian": "LITTLE"}
    try:
        file = soundfile.SoundFile(handle, closefd=False, **options)
    except (soundfile.LibsndfileError, ValueError, TypeError) as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
        raise AudioError(f"standard input: no WAV ({reason.strip().rstrip('.')}); --raw takes plain samples") from error
    with file:
        if not 1 <= file.channels <= MAX_CHANNELS or not RATES[0] <= file.samplerate <= RATES[1]:
            raise AudioError(f"standard input: {file.samplerate} Hz, {file.channels} channels: not plausible")
        yield PipeReader(file, handle)


class PipeWriter:
    """Writes samples of ``encoding`` to a file descriptor, behind a header of WAV unless ``encoding`` is RAW."""

    def __init__(self, handle: int, encoding: Encoding, frames: int = 0) -> None:
        self.warnings: list[str] = []
        if encoding.container != "RAW":
            kept = encoding.subtype if encoding.subtype in _WAV_CODES else "PCM_16"
            if kept != encoding.subtype:
                self.warnings.append(f"a pipe cannot be written as {encoding.subtype}: {kept} taken")
            encoding = replace(encoding, subtype=kept)
            with _writable(), open(handle, "wb", closefd=False) as file:
                file.write(header(encoding, frames))
        self._clips, self._clipped = encoding.subtype not in ("FLOAT", "DOUBLE"), 0
        form = (encoding.sample_rate, encoding.channels, encoding.subtype, "LITTLE", "RAW")
        self._file = soundfile.SoundFile(_Onwards(handle), "w", *form)

    def write(self, samples: np.ndarray) -> None:
        """Write samples (C, n). Raises ``AudioError``."""
        self._clipped += int(np.count_nonzero(np.abs(samples) > 1.0)) if self._clips else 0
        with _writable():
            self._file.write(samples.T)

    def close(self) -> None:
        with _writable():
            self._file.close()
        if self._clipped:
            self.warnings.append(f"{self._clipped} samples clipped at full scale")


class _Onwards:
    """A file that libsndfile takes for empty, whatever it is and holds: all of it is written at its end.

    libsndfile writes no samples without a header to a file that has something in it, as a header.
    """

    def __init__(self, handle: int) -> None:
        self._handle, self._count = handle, 0

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError:  # an exception is lost within libsndfile; what it did not write is an error there
            return len(data) - len(rest)
        self._count += len(data)
        return len(data)

    def tell(self) -> int:
        return self._count

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._count


def header(encoding: Encoding, frames: int = 0) -> bytes:
    """Make the header of a WAV of so many frames, or, with 0, of one of unknown length."""
    width = WIDTHS[encoding.subtype]
    frame, code = width * encoding.channels, _WAV_CODES[encoding.subtype]
    size = frames * frame if 0 < frames * frame < _UNKNOWN - 36 else _UNKNOWN
    rates = struct.pack("<IIHH", encoding.sample_rate, encoding.sample_rate * frame, frame, 8 * width)
    form = struct.pack("<HH", code, encoding.channels) + rates
    riff = _UNKNOWN if size == _UNKNOWN else size + 36
    return struct.pack("<4sI8sI", b"RIFF", riff, b"WAVEfmt ", 16) + form + struct.pack("<4sI", b"data", size)


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except (soundfile.LibsndfileError, OSError, AssertionError) as error:
        raise AudioError("standard output: cannot be written; who reads it has gone, or the disk is full") from error
