"""Containers of sound and picture (MP4, Matroska, ASF ...), by PyAV, which is FFmpeg: the extra ``media``.

Their sound is read like that of other files; ``remux.py`` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fastenh.audio import listing
from fastenh.audio.files import MAX_CHANNELS, RATES, AudioError, Encoding

_DEMUXERS = "mov,matroska,asf,aac"  # others may be playlists, which open further files or addresses
LOSSLESS = ("alac", "flac", "pcm_")
_SUBTYPES = {"u8": "PCM_U8", "s16": "PCM_16", "s32": "PCM_24", "flt": "FLOAT", "dbl": "DOUBLE"}
_JITTER = 0.01  # seconds: time stamps of Matroska and ASF are rounded to 1 ms
_LONGEST_GAP = 600  # seconds of silence that time stamps may ask for, in all


class TrackReader:
    """A sound track. ``frames`` is what the header says, 0 for unknown; the rest is as of ``files.Reader``.

    What time stamps leave out between two packets is silence, so that sound and picture stay in step.
    """

    def __init__(self, path: Path, stream: Any, label: str) -> None:
        context = stream.codec_context
        rate, layout = context.sample_rate, context.layout
        if not 1 <= layout.nb_channels <= MAX_CHANNELS:
            raise AudioError(f"{path}: {layout.nb_channels} channels in the header: not plausible")
        if not RATES[0] <= rate <= RATES[1]:
            raise AudioError(f"{path}: {rate} Hz in the header: not plausible")
        self.path, self.label, self._stream = path, label, stream
        self.codec = context.codec.canonical_name
        self.layout, self.sample_format, self.profile = layout.name, context.format, stream.profile
        lossless = self.codec.startswith(LOSSLESS)
        subtype = _SUBTYPES.get(context.format.packed.name, "") if lossless else ""
        self.encoding = Encoding(rate, layout.nb_channels, stream.container.format.name, subtype or self.codec)
        self.frames = int(_seconds(stream) * rate)
        self.begin = Fraction(0)  # seconds: where the first sample lies; known with the first block
        self.count = 0  # samples that were given
        self.warnings: list[str] = []
        self._damaged, self._filled, self._jumped = 0, 0, False
        self._end: Fraction | None = None  # where the last packet says that the sound ends

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 (C, n). Raises ``AudioError`` where nothing can be read."""
        held: np.ndarray | None = None
        for block in self._placed():
            if held is not None:
                self.count += held.shape[1]
                yield held
            held = block
        if held is None:
            raise AudioError(f"{self.path}: no sound can be read from {self.label}")
        held = held[:, : held.shape[1] - self._padding(held.shape[1])]
        self.count += held.shape[1]
        yield held
        if self._damaged:
            self.warnings.append(f"{self.label}: {self._damaged} damaged packets, silence taken for them")
        if self._jumped:
            self.warnings.append(f"{self.label}: its time stamps jump; its sound was taken as continuous there")

    def _padding(self, last: int) -> int:
        """Samples that the encoder added to fill its last packet: MP4 says where the sound ends, to the sample."""
        rate = self.encoding.sample_rate
        if self._end is None or self._stream.time_base != Fraction(1, rate):
            return 0
        padding = round((self.begin - self._end) * rate) + self.count + last
        return padding if 0 < padding < last else 0

    def _placed(self) -> Iterator[np.ndarray]:
        """The decoded blocks, with silence where time stamps leave a gap."""
        rate, channels = self.encoding.sample_rate, self.encoding.channels
        position, shift = 0, 0  # samples; how much later the time stamps are than they should be
        for time, block in self._decoded():
            if position == 0 and time is not None:
                self.begin = time
            missing = 0 if time is None else round((time - self.begin) * rate) - position - shift
            if missing > _JITTER * rate and self._filled + missing <= _LONGEST_GAP * rate:
                self._filled += missing
                position += missing
                for first in range(0, missing, rate):
                    yield np.zeros((channels, min(rate, missing - first)), np.float32)
            elif abs(missing) > _JITTER * rate:
                self._jumped, shift = True, shift + missing
            position += block.shape[1]
            yield block

    def _decoded(self) -> Iterator[tuple[Fraction | None, np.ndarray]]:
        import av

        resampler: Any = None
        made_for: tuple[str, str, int] | None = None
        try:
            for packet in self._stream.container.demux(self._stream):
                if packet.pts is not None and packet.duration:
                    self._end = max(self._end or 0, (packet.pts + packet.duration) * packet.time_base)
                try:
                    frames = packet.decode()
                except failures():
                    self._damaged += 1
                    continue
                for frame in frames:
                    kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                    if kind != made_for:
                        resampler = av.AudioResampler("fltp", self.layout, self.encoding.sample_rate)
                        made_for = kind
                    time = None if frame.pts is None else frame.pts * frame.time_base
                    for part in resampler.resample(frame):
                        yield time, part.to_ndarray()
                        time = None
        except failures() as error:
            self.warnings.append(f"{self.label}: damaged from some place on ({reason(error)}), kept up to there")


@contextmanager
def reading(path: Path, track: int | None = None) -> Iterator[TrackReader]:
    """Open sound track number ``track``, the first one unless given. Raises ``AudioError``."""
    with opened(path) as container:
        ((stream, label),) = tracks(path, container, track or 1)
        reader = TrackReader(path, stream, label)
        sounds = len(container.streams.audio)
        if track is None and sounds > 1:
            reader.warnings.append(f"{sounds} sound tracks, the first one taken; --track takes another")
        yield reader


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    if not listing.has_media():
        raise AudioError(f"{path}: {listing.MEDIA_ADVICE}")
    import av

    with _readable(path), path.open("rb") as file:
        options = {"format_whitelist": _DEMUXERS}
        with av.open(file, "r", container_options=options, metadata_errors="replace") as container:
            yield container


def tracks(path: Path, container: Any, track: int | None) -> list[tuple[Any, str]]:
    """Return (stream, label) of all sound tracks, or of one."""
    sounds = [(stream, f"sound track {n}") for n, stream in enumerate(container.streams.audio, 1)]
    sounds = [(stream, label) for stream, label in sounds if stream.codec_context is not None]
    if not sounds:
        raise AudioError(f"{path}: no sound track in it that FFmpeg can decode")
    if track is None:
        return sounds
    chosen = [(stream, label) for stream, label in sounds if label == f"sound track {track}"]
    if not chosen:
        raise AudioError(f"{path}: no sound track {track}; it has {len(sounds)}")
    return chosen


def _seconds(stream: Any) -> float:
    import av

    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return max(stream.container.duration or 0, 0) / av.time_base


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except AudioError:
        raise
    except failures() as error:
        raise AudioError(f"{path}: cannot be read as sound ({reason(error)})") from error


def failures() -> tuple[type[Exception], ...]:
    """Name what PyAV raises: errors of FFmpeg, and those of Python that stand for some of them."""
    import av

    return (av.FFmpegError, OSError, ValueError, TypeError)


def reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
