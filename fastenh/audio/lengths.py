"""How long a recording is: what the header, the size of the file and the decoder say of it, held against each other."""

from __future__ import annotations

from pathlib import Path

import soundfile

WIDTHS = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4}  # bytes
WIDTHS |= {"FLOAT": 4, "DOUBLE": 8}
_PLAIN = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "SVX", "NIST", "VOC")  # a sample after the other
_HEADER_BYTES = 1 << 14  # more than this is no header, even with tags in it
_LOG = ("(should be", "does not match", "wasn't closed properly")  # libsndfile's words in its log
_OGG_TAIL = 1 << 17  # a page of Ogg is 64 KB at the most


def doubts(path: Path, file: soundfile.SoundFile, counted: int) -> list[str]:
    """Warnings where header, size of the file and ``counted`` (frames that the decoder gave) do not agree."""
    if counted != file.frames:
        return [f"the header says {file.frames} frames, {counted} were there"]
    if any(words in file.extra_info for words in _LOG):
        return ["header and file disagree about the length: what is there was taken"]
    room = _room(path, file)
    if room > 2 * counted and (room - counted) * _width(file) > _HEADER_BYTES:
        return [f"the header says {file.frames} frames, the file has room for {room}"]
    if file.format == "OGG" and not _has_end(path):
        return ["the end of the stream is missing: the file was cut, what is there was taken"]
    return []


def speaks_of_sound(path: Path, file: soundfile.SoundFile) -> bool:
    """Whether a file of which nothing could be read should have held something, by its header or its size."""
    return file.frames > 0 or path.stat().st_size > _HEADER_BYTES


def _width(file: soundfile.SoundFile) -> int:
    """Bytes of a frame; 0 where that differs from frame to frame."""
    return WIDTHS.get(file.subtype, 0) * file.channels if file.format in _PLAIN else 0


def _room(path: Path, file: soundfile.SoundFile) -> int:
    """Frames that the file would hold if all of it was sound."""
    width = _width(file)
    return path.stat().st_size // width if width else 0


def _has_end(path: Path) -> bool:
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
