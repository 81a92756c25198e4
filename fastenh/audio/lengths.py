"""How long a recording is: what the header, the size of the file and the decoder say of it, held against each other."""

from __future__ import annotations

from pathlib import Path

import soundfile

from fastenh.audio.opening import caf_sound, has_last_page

WIDTHS = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4}  # bytes
WIDTHS |= {"FLOAT": 4, "DOUBLE": 8}
_PLAIN = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "SVX", "NIST", "VOC")  # a sample after the other
_HEADER_BYTES = 1 << 14  # more than this is no header, even with tags in it
_LOG = ("(should be", "does not match", "wasn't closed properly")  # libsndfile's words in its log


def doubts(path: Path, file: soundfile.SoundFile, counted: int) -> list[str]:
    """Warnings where header, size of the file and ``counted`` (frames that the decoder gave) do not agree."""
    if counted != file.frames:
        return [f"the header says {file.frames} frames, {counted} were there"]
    if any(words in file.extra_info for words in _LOG):
        return ["header and file disagree about the length: what is there was taken"]
    room = _room(path, file)
    if room > 2 * counted and (room - counted) * _width(file) > _HEADER_BYTES:
        return [f"the header says {file.frames} frames, the file has room for {room}"]
    cut = _cut(path, file)
    return [cut] if cut else []


def speaks_of_sound(path: Path, file: soundfile.SoundFile) -> bool:
    """Whether a file of which nothing could be read should have held something, by its header or its size."""
    return file.frames > 0 or path.stat().st_size > _HEADER_BYTES or _cut(path, file) != ""


def _cut(path: Path, file: soundfile.SoundFile) -> str:
    """What says that a file was cut, where libsndfile does not."""
    sound = caf_sound(path)
    if sound is not None and sound.said > sound.present:
        return f"the header says {sound.said:,} bytes of sound, {sound.present:,} were there"
    if file.format == "OGG" and not has_last_page(path):
        return "the end of the stream is missing: the file was cut, what is there was taken"
    return ""


def _width(file: soundfile.SoundFile) -> int:
    """Bytes of a frame; 0 where that differs from frame to frame."""
    return WIDTHS.get(file.subtype, 0) * file.channels if file.format in _PLAIN else 0


def _room(path: Path, file: soundfile.SoundFile) -> int:
    """Frames that the file would hold if all of it was sound."""
    width = _width(file)
    return path.stat().st_size // width if width else 0
