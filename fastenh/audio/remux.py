"""A copy of a container of sound and picture, in which sound is replaced, by PyAV: the extra ``media``.

Pictures, subtitles, attachments and other sound are copied packet by packet; nothing of them is decoded.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastenh.atomic import replacing_locked
from fastenh.audio import files, listing
from fastenh.audio.files import AudioError
from fastenh.audio.media import LOSSLESS, TrackReader, failures, opened, reason, tracks

_MUXERS = {
    ".m4a": "mp4", ".m4b": "mp4", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska",
    ".mka": "matroska", ".webm": "webm", ".weba": "webm", ".wma": "asf", ".wmv": "asf", ".aac": "adts",
}  # fmt: skip
_ENCODERS = {"opus": "libopus", "mp3": "libmp3lame", "wmav1": "wmav2"}  # else the encoder has the codec's own name
_EXACT = ("aac", "alac", "ac3", "eac3", "flac", "mp3", "opus", "wmav1", "wmav2")
_NEAREST = {"matroska": "libopus", "webm": "libopus", "asf": "wmav2"}  # where FFmpeg has no good encoder; else aac
_MEASURED = 2000  # packets: enough for a bit rate that no header says
_BIT_RATE = 128_000  # where nothing says one
_BLOCK = 1 << 14  # samples
_OF_THE_MUXER = ("encoder", "major_brand", "minor_version", "compatible_brands")
Clean = Callable[[TrackReader], Iterator[np.ndarray]]  # a track -> blocks (C, n), as many samples as it has
_STALE = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS")  # Matroska's notes on what was there before


def rewrites(path: Path) -> bool:
    """Whether a file of this name is written by ``rewrite``."""
    return path.suffix.lower() in listing.MEDIA_SUFFIXES


def rewrite(
    source: Path,
    target: Path,
    clean: Clean,
    track: int | None = None,
    bit_rate: int | None = None,
    sound_alone: bool = False,
) -> list[str]:
    """Copy ``source`` with the sound that ``clean`` makes of each sound track, or only of number ``track``.

    bit_rate: in bit/s; that of the track unless given. sound_alone: other streams stay empty, for a rehearsal. Returns
    warnings; raises ``AudioError``. One pass: each track is read by a file handle of its own, and the packets of all
    are merged by their times, so that memory does not grow with the length.
    """
    import av

    with ExitStack() as stack:
        container = stack.enter_context(opened(source))
        readers = {}
        for stream, label in tracks(source, container, track):
            own = stack.enter_context(opened(source))
            readers[stream.index] = TrackReader(source, own.streams[stream.index], label)
        temporary = stack.enter_context(replacing_locked(target))
        with _writable(target), temporary.open("w+b") as file:
            muxer = _MUXERS[target.suffix.lower()]
            sink = _Sink(file)
            with av.open(sink, "w", format=muxer, container_options=_muxer_options(muxer, container)) as output:
                copy = _Copy(container, output, readers, bit_rate)
                packets = [copy.encoded(index, clean(reader)) for index, reader in readers.items()]
                packets += [] if sound_alone else [copy.copied()]
                for packet in heapq.merge(*packets, key=_time):
                    output.mux(packet)
                    sink.check()
            sink.check()
        try:
            with opened(temporary) as written:
                copy.compare_tags(written)
        except AudioError as error:
            raise AudioError(f"{target}: cannot be written; what was written cannot be read") from error
    return copy.warnings + [warning for reader in readers.values() for warning in reader.warnings]


class _Sink:
    """A file for FFmpeg to write to. What the file raises is kept for ``check``: PyAV would print some of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first ``OSError``."""
        if self._error:
            raise self._error

    def write(self, content: bytes) -> int:
        return self._tried(len(content), self._file.write, content)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._tried(0, self._file.seek, place, whence)

    def tell(self) -> int:
        return self._tried(0, self._file.tell)

    def _tried(self, otherwise: int, call: Callable[..., int], *arguments: Any) -> int:
        if self._error:
            return otherwise
        try:
            return call(*arguments)
        except OSError as error:
            self._error = error
            return otherwise


def _muxer_options(muxer: str, source: Any) -> dict[str, str]:
    """The brand of an MP4 says what it is, an M4A or a film; ADTS has tags only where they are asked for."""
    brand = source.metadata.get("major_brand", "")
    if muxer == "mp4" and len(brand) == 4 and brand != "qt  ":
        return {"brand": brand}
    return {"write_id3v2": "1"} if muxer == "adts" and _tags(source) else {}


class _Copy:
    """The streams of a copy, in the order of its source."""

    def __init__(self, source: Any, output: Any, readers: dict[int, TrackReader], bit_rate: int | None) -> None:
        self.source, self.output, self.readers = source, output, readers
        self.warnings: list[str] = []
        self._streams: dict[int, Any] = {}
        for stream in source.streams:
            reader = readers.get(stream.index)
            made = self._sound(stream, reader, bit_rate) if reader else self._template(stream)
            if made is not None:
                self._streams[stream.index] = made
                made.metadata.update(_tags(stream, changed=reader is not None))
                made.disposition = stream.disposition
        output.metadata.update(_tags(source))
        if source.chapters():
            output.set_chapters(source.chapters())

    def _template(self, stream: Any) -> Any:
        """A stream that is copied as it is; nothing where this container cannot hold it."""
        if stream.type == "data":  # time codes and the text of chapters: made anew from tags and chapters
            return None
        try:
            made = self.output.add_stream_from_template(stream, opaque=True)
        except (ValueError, TypeError, AttributeError):
            self.warnings.append(f"stream {stream.index} ({stream.type}) cannot be copied: left out")
            return None
        if stream.type == "video" and stream.average_rate:
            made.codec_context.framerate = stream.average_rate
        return made

    def _sound(self, stream: Any, reader: TrackReader, bit_rate: int | None) -> Any:
        import av

        name = _encoder(reader.codec, self.output.format.name)
        codec = av.Codec(name, "w")
        rate = _nearest_rate(reader.encoding.sample_rate, codec.audio_rates)
        made = self.output.add_stream(name, rate=rate, layout=reader.layout)
        formats = [form.name for form in codec.audio_formats or ()]
        form = reader.sample_format
        made.format = next((f.name for f in (form, form.planar, form.packed) if f.name in formats), formats[0])
        if not codec.name.startswith(LOSSLESS):
            made.bit_rate = bit_rate or _bit_rate(reader.path, stream)
        before = f"{reader.codec} ({reader.profile})" if "HE" in (reader.profile or "") else reader.codec
        if codec.canonical_name != before:
            self.warnings.append(f"{reader.label}: {before} cannot be written: {codec.canonical_name} taken")
        if rate != reader.encoding.sample_rate:
            lacking = f"{codec.canonical_name} has no {reader.encoding.sample_rate} Hz"
            self.warnings.append(f"{reader.label}: {lacking}: {rate} Hz taken")
        made.time_base = Fraction(1, rate)
        try:
            made.codec_context.open(strict=False)
        except failures() as error:
            what = f"{codec.canonical_name}, {rate} Hz, {reader.layout}, {made.bit_rate or 0} bit/s"
            raise AudioError(f"{reader.path}: {reader.label} cannot be written as {what} ({reason(error)})") from error
        return made

    def copied(self) -> Iterator[Any]:
        """The packets of all other streams."""
        others = {index: made for index, made in self._streams.items() if index not in self.readers}
        streams = [self.source.streams[index] for index in others if self.source.streams[index].type != "attachment"]
        if not streams:
            return
        try:
            for packet in self.source.demux(streams):
                if packet.size:
                    if packet.pts is None and packet.dts is None:  # the picture of a cover
                        packet.pts = packet.dts = 0
                    packet.stream = others[packet.stream_index]
                    yield packet
        except failures() as error:
            self.warnings.append(f"picture and other streams are damaged from some place on ({reason(error)})")

    def encoded(self, index: int, blocks: Iterator[np.ndarray]) -> Iterator[Any]:
        """The packets of a sound track; its first sample lies where it did."""
        import av

        reader, stream = self.readers[index], self._streams[index]
        rate, whole = reader.encoding.sample_rate, not stream.codec_context.format.name.startswith(("flt", "dbl"))
        lead = self._lead(stream)
        place, clipped = None, 0
        for block in _led(blocks, lead):
            for first in range(0, block.shape[1], _BLOCK):
                part = np.ascontiguousarray(block[:, first : first + _BLOCK])
                clipped += int(np.count_nonzero(np.abs(part) > 1.0)) if whole else 0
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=reader.layout)
                place = round(reader.begin * rate) - lead if place is None else place
                frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
                place += part.shape[1]
                yield from stream.encode(frame)
        yield from stream.encode(None)
        if clipped:
            self.warnings.append(f"{clipped} samples clipped at full scale")

    def _lead(self, stream: Any) -> int:
        """Samples of silence to be put before the sound, or, below 0, to be taken from it.

        Decoders of WMA lose the first frame. ADTS does not tell of the frame that an AAC encoder puts before the sound:
        one is there from the last encoder, and takes the place of ours.
        """
        if stream.codec_context.name.startswith("wma"):
            return stream.codec_context.frame_size
        return -stream.codec_context.frame_size if self.output.format.name == "adts" else 0

    def compare_tags(self, written: Any) -> None:
        kept = {key.lower() for key in written.metadata}
        lost = sorted(key for key in _tags(self.source) if key.lower() not in kept)
        if lost:
            self.warnings.append(f"this container has no place for the tags {', '.join(lost)}")


def _led(blocks: Iterator[np.ndarray], lead: int) -> Iterator[np.ndarray]:
    """The blocks with silence before them, or less of their beginning."""
    for block in blocks:
        if lead > 0 and block.size:
            yield np.zeros((len(block), lead), np.float32)
            lead = 0
        skipped = min(-lead, block.shape[1]) if lead < 0 else 0
        lead += skipped
        yield block[:, skipped:]


def _encoder(codec: str, muxer: str) -> str:
    if codec in _EXACT or codec.startswith("pcm_"):
        return _ENCODERS.get(codec, codec)
    return _NEAREST.get(muxer, "aac")


def _nearest_rate(rate: int, rates: list[int] | None) -> int:
    """That rate or the next higher one that an encoder has."""
    if not rates or rate in rates:
        return rate
    return min((r for r in rates if r > rate), default=max(rates))


def _bit_rate(path: Path, stream: Any) -> int:
    """Bit/s of a sound track: what its header says, or what its first packets have."""
    if stream.bit_rate or stream.codec_context.bit_rate:
        return stream.bit_rate or stream.codec_context.bit_rate
    size = 0
    begin: Any = None  # time stamps
    end: Any = None
    with opened(path) as container:
        for count, packet in enumerate(container.demux(container.streams[stream.index])):
            if packet.pts is None or count == _MEASURED:
                break
            begin = packet.pts if begin is None else begin
            end = packet.pts + (packet.duration or 0)
            size += packet.size
    seconds = float((end - begin) * stream.time_base) if size else 0.0
    return round(8 * size / seconds) if seconds > 0 else _BIT_RATE


def _tags(owner: Any, changed: bool = False) -> dict[str, str]:
    """The tags of a file or a stream, without those that the muxer makes; changed: or that tell of the old sound."""
    left_out = _OF_THE_MUXER + (_STALE if changed else ())
    return {key: value for key, value in owner.metadata.items() if not key.startswith(left_out)}


def _time(packet: Any) -> float:
    return float((packet.dts if packet.dts is not None else packet.pts) * packet.time_base)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except AudioError:
        raise
    except failures() as error:
        why = files.DISK_FULL if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) else reason(error)
        raise AudioError(f"{path}: cannot be written ({why})") from error
