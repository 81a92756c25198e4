"""Opening a sound file for reading, also one that was cut short and that libsndfile refuses as it is."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

_OGG_TAIL = 1 << 17  # a page of Ogg is 64 KB at the most
_CHUNK = struct.Struct(">4sq")  # of a CAF: kind and size


def opened(path: Path) -> soundfile.SoundFile:
    """Open like ``soundfile.SoundFile``, but read a CAF as far as it goes, also without the rest of its sound.

    Raises ``OSError``, ``soundfile.LibsndfileError``, and ``ValueError`` with the reason where it is known.
    """
    path.open("rb").close()  # libsndfile does not say why the system refuses one
    try:
        return soundfile.SoundFile(native(path))
    except soundfile.LibsndfileError:
        sound = caf_sound(path)
        if sound is not None and not 0 <= sound.said <= sound.present:
            return _salvaged(path, sound)
        if why := _why_nothing(path):
            raise ValueError(why) from None
        raise


def native(path: Path) -> bytes | str:
    """The name as the system has it: soundfile encodes strings itself, and not those that are no UTF-8."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def has_last_page(path: Path) -> bool:
    """Whether the last page of an Ogg file is there as a whole and says that it is the last (RFC 3533)."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - _OGG_TAIL)
        file.seek(start)
        tail = file.read()
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27]
    if page < 0 or len(header) < 27:
        return False
    segments = tail[page + 27 : page + 27 + header[26]]
    return bool(header[5] & 4) and page + 27 + header[26] + sum(segments) <= len(tail)


@dataclass(frozen=True)
class CafSound:
    """The chunk of a CAF that holds the sound: where its size is written, that size, and the bytes that are there."""

    place: int
    said: int  # -1 where a program recorded and did not go back to the header: up to the end of the file
    present: int


def caf_sound(path: Path) -> CafSound | None:
    """Nothing where the file is no CAF, or ends before its sound."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        place = 8
        is_caf = file.read(4) == b"caff"
        while is_caf and place + _CHUNK.size <= size:
            file.seek(place)
            kind, length = _CHUNK.unpack(file.read(_CHUNK.size))
            place += _CHUNK.size
            if kind == b"data":
                return CafSound(place - 8, length, size - place)
            place += max(length, 0)
    return None


def _salvaged(path: Path, sound: CafSound) -> soundfile.SoundFile:
    file = soundfile.SoundFile(_Sized(path, sound))
    if file.subtype.startswith("ALAC"):  # libsndfile would go on to its old length with what is no sound
        file.close()
        raise ValueError(f"the file was cut: {sound.present:,} of {sound.said:,} bytes of ALAC are there")
    return file


class _Sized(io.FileIO):
    """A CAF, with the size of the sound that is there in the place of the one that its header says."""

    def __init__(self, path: Path, sound: CafSound) -> None:
        super().__init__(path)
        self._place, self._size = sound.place, struct.pack(">q", sound.present)

    def readinto(self, buffer: Buffer) -> int:
        begin = self.tell()
        count = super().readinto(buffer)
        view = memoryview(buffer).cast("B")
        for place, byte in enumerate(self._size, self._place - begin):
            if 0 <= place < count:
                view[place] = byte
        return count


def _why_nothing(path: Path) -> str:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"OggS" and not has_last_page(path):
        return "the file was cut before the end of its first page of sound"
    if magic == b"caff" and caf_sound(path) is None:
        return "the file was cut before its sound"
    return ""
