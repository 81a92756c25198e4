"""Bit rates of MP3, Opus and Vorbis: which one a file has, and what asks libsndfile for it.

libsndfile takes a "compression level" from 0 to 1 and no bit rate. For MP3 and Opus the rate falls in a line with it;
for Vorbis it is a quality, whose nominal rate stands in the header of what is written.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

_OPUS = 256_000, 6_000  # bit/s for each channel at levels 0 and 1
_MP3 = ((32_000, (320_000, 32_000)), (16_000, (160_000, 8_000)), (0, (64_000, 8_000)))  # from this sample rate on
_SMALLEST_FRAME = 208  # bytes: LAME's note of the length goes into a frame, at a constant rate one like all others
_LEVELS = 64  # steps that a level is looked for in
_HIGHEST_LEVEL = 0.99  # LAME refuses 1


class Sound(Protocol):
    """The part of ``files.Encoding`` that is needed here."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def bit_rate(self) -> int: ...


def bit_rate(path: Path, file: soundfile.SoundFile, tag_bytes: int) -> int:
    """Return bit/s: the mean of an MP3 or Opus file without its tags, the nominal one of a Vorbis file; else 0."""
    if file.subtype == "VORBIS":
        with path.open("rb") as content:
            return _nominal(content.read(256))
    if file.subtype not in ("OPUS", "MPEG_LAYER_III") or not 0 < file.frames < 2**48:
        return 0
    return round(8 * max(0, path.stat().st_size - tag_bytes) * file.samplerate / file.frames)


def options(sound: Sound, container: str, subtype: str) -> dict[str, Any]:
    """Options for ``soundfile.SoundFile``; none where the rate is not known, or the format has none."""
    if not sound.bit_rate:
        return {}
    if subtype == "VORBIS":
        return {"compression_level": _vorbis_level(sound.sample_rate, sound.channels, sound.bit_rate)}
    if subtype == "OPUS":
        high, low = (rate * sound.channels for rate in _OPUS)
        return {"compression_level": _level(sound.bit_rate, high, low)}
    if subtype == "MPEG_LAYER_III":
        high, low = next(rates for least, rates in _MP3 if sound.sample_rate >= least)
        frame = (144 if sound.sample_rate >= _MP3[0][0] else 72) * sound.bit_rate / sound.sample_rate  # bytes
        mode = "CONSTANT" if frame > _SMALLEST_FRAME else "AVERAGE"
        return {"compression_level": _level(sound.bit_rate, high, low), "bitrate_mode": mode}
    return {}


def _level(rate: int, high: int, low: int) -> float:
    return min(max((high - rate) / (high - low), 0.0), _HIGHEST_LEVEL)


@cache
def _vorbis_level(sample_rate: int, channels: int, rate: int) -> float:
    """The level whose nominal rate is nearest, by trial: the tables of libvorbis are not to be had otherwise."""
    low, high = 0, _LEVELS  # the rate falls from low to high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _vorbis_rate(sample_rate, channels, middle) >= rate else (low, middle)
    return min((low, high), key=lambda step: abs(_vorbis_rate(sample_rate, channels, step) - rate)) / _LEVELS


def _vorbis_rate(sample_rate: int, channels: int, step: int) -> int:
    file, one = io.BytesIO(), np.zeros((1, channels), np.float32)
    soundfile.write(file, one, sample_rate, "VORBIS", format="OGG", compression_level=step / _LEVELS)
    return _nominal(file.getvalue()[:256])


def _nominal(head: bytes) -> int:
    """The nominal bit rate in the first packet of Vorbis; 0 where there is none."""
    place = head.find(b"\x01vorbis")
    field = head[place + 20 : place + 24] if place >= 0 else b""
    return max(0, int.from_bytes(field, "little", signed=True))
