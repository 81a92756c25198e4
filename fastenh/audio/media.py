"""Containers of sound and picture (MP4, Matroska, ASF ...), by PyAV, which is FFmpeg: the extra ``media``.

Their sound is read like that of other files. To write, a copy of the whole file is made in which sound is replaced:
pictures, subtitles, attachments and other sound are copied packet by packet, and nothing else is decoded.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fastenh.atomic import replacing_locked
from fastenh.audio import files, listing
from fastenh.audio.files import MAX_CHANNELS, RATES, AudioError, Encoding

_MUXERS = {
    ".m4a": "mp4", ".m4b": "mp4", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska",
    ".mka": "matroska", ".webm": "webm", ".weba": "webm", ".wma": "asf", ".wmv": "asf", ".aac": "adts",
}  # fmt: skip
_DEMUXERS = "mov,matroska,asf,aac"  # others may be playlists, which open further files or addresses
_ENCODERS = {"opus": "libopus", "mp3": "libmp3lame", "wmav1": "wmav2"}  # else the encoder has the codec's own name
_EXACT = ("aac", "alac", "ac3", "eac3", "flac", "mp3", "opus", "wmav1", "wmav2")
_NEAREST = {"matroska": "libopus", "webm": "libopus", "asf": "wmav2"}  # where FFmpeg has no good encoder; else aac
_LOSSLESS = ("alac", "flac", "pcm_")
_SUBTYPES = {"u8": "PCM_U8", "s16": "PCM_16", "s32": "PCM_24", "flt": "FLOAT", "dbl": "DOUBLE"}
_JITTER = 0.01  # seconds: time stamps of Matroska and ASF are rounded to 1 ms
_LONGEST_GAP = 600  # seconds of silence that time stamps may ask for, in all
_MEASURED = 2000  # packets: enough for a bit rate that no header says
_BIT_RATE = 128_000  # where nothing says one
_BLOCK = 1 << 14  # samples
_OF_THE_MUXER = ("encoder", "major_brand", "minor_version", "compatible_brands")
_STALE = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS")  # Matroska's notes on what was there before


def rewrites(path: Path) -> bool:
    """Whether a file of this name is written by ``rewrite``."""
    return path.suffix.lower() in listing.MEDIA_SUFFIXES


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
        lossless = self.codec.startswith(_LOSSLESS)
        subtype = _SUBTYPES.get(context.format.packed.name, "") if lossless else ""
        self.encoding = Encoding(rate, layout.nb_channels, stream.container.format.name, subtype or self.codec)
        self.frames = int(_seconds(stream) * rate)
        self.begin = Fraction(0)  # seconds: where the first sample lies; known with the first block
        self.count = 0  # samples that were given
        self.warnings: list[str] = []
        self._damaged, self._filled, self._jumped = 0, 0, False
        self._end: Fraction | None = None  # where the last packet says that the sound ends

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 (C, n). Raises ``AudioError`` where nothing can be read."""
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

        resampler, made_for = None, None
        try:
            for packet in self._stream.container.demux(self._stream):
                if packet.pts is not None and packet.duration:
                    self._end = max(self._end or 0, (packet.pts + packet.duration) * packet.time_base)
                try:
                    frames = packet.decode()
                except _failures():
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
        except _failures() as error:
            self.warnings.append(f"{self.label}: damaged from some place on ({_reason(error)}), kept up to there")


@contextmanager
def reading(path: Path, track: int | None = None) -> Iterator[TrackReader]:
    """Sound track number ``track``, the first one unless given. Raises ``AudioError``."""
    with _opened(path) as container:
        tracks = _tracks(path, container, track or 1)
        reader = TrackReader(path, *tracks[0])
        sounds = len(container.streams.audio)
        if track is None and sounds > 1:
            reader.warnings.append(f"{sounds} sound tracks, the first one taken; --track takes another")
        yield reader


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not listing.has_media():
        raise AudioError(f"{path}: {listing.MEDIA_ADVICE}")
    import av

    with _readable(path), path.open("rb") as file:
        options = {"format_whitelist": _DEMUXERS}
        with av.open(file, "r", container_options=options, metadata_errors="replace") as container:
            yield container


def _tracks(path: Path, container: Any, track: int | None) -> list[tuple[Any, str]]:
    """(stream, label) of all sound tracks, or of one."""
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


Clean = Callable[[TrackReader], Iterator[np.ndarray]]  # a track -> blocks (C, n), as many samples as it has


def rewrite(
    source: Path,
    target: Path,
    clean: Clean,
    track: int | None = None,
    bit_rate: int | None = None,
    sound_alone: bool = False,
) -> list[str]:
    """A copy of ``source`` with the sound that ``clean`` makes of each sound track, or of number ``track`` alone.

    bit_rate: in bit/s; that of the track unless given. sound_alone: other streams stay empty, for a rehearsal. Returns
    warnings; raises ``AudioError``. One pass: each track is read by a file handle of its own, and the packets of all
    are merged by their times, so that memory does not grow with the length.
    """
    import av

    with ExitStack() as stack:
        container = stack.enter_context(_opened(source))
        readers = {}
        for stream, label in _tracks(source, container, track):
            own = stack.enter_context(_opened(source))
            readers[stream.index] = TrackReader(source, own.streams[stream.index], label)
        temporary = stack.enter_context(replacing_locked(target))
        with _writable(target), temporary.open("w+b") as file:
            muxer = _MUXERS[target.suffix.lower()]
            with av.open(file, "w", format=muxer, container_options=_muxer_options(muxer, container)) as output:
                copy = _Copy(container, output, readers, bit_rate)
                packets = [copy.encoded(index, clean(reader)) for index, reader in readers.items()]
                packets += [] if sound_alone else [copy.copied()]
                for packet in heapq.merge(*packets, key=_time):
                    output.mux(packet)
        try:
            with _opened(temporary) as written:
                copy.compare_tags(written)
        except AudioError as error:
            raise AudioError(f"{target}: cannot be written; what was written cannot be read") from error
    return copy.warnings + [warning for reader in readers.values() for warning in reader.warnings]


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
        if not codec.name.startswith(_LOSSLESS):
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
        except _failures() as error:
            what = f"{codec.canonical_name}, {rate} Hz, {reader.layout}, {made.bit_rate or 0} bit/s"
            raise AudioError(f"{reader.path}: {reader.label} cannot be written as {what} ({_reason(error)})") from error
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
        except _failures() as error:
            self.warnings.append(f"picture and other streams are damaged from some place on ({_reason(error)})")

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
    size, begin, end = 0, None, None
    with _opened(path) as container:
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


def _seconds(stream: Any) -> float:
    import av

    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return max(stream.container.duration or 0, 0) / av.time_base


def _time(packet: Any) -> float:
    return float((packet.dts if packet.dts is not None else packet.pts) * packet.time_base)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except AudioError:
        raise
    except _failures() as error:
        raise AudioError(f"{path}: cannot be read as sound ({_reason(error)})") from error


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except AudioError:
        raise
    except _failures() as error:
        why = files.DISK_FULL if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) else _reason(error)
        raise AudioError(f"{path}: cannot be written ({why})") from error


def _failures() -> tuple[type[Exception], ...]:
    """What PyAV raises: errors of FFmpeg, and those of Python that stand for some of them."""
    import av

    return (av.FFmpegError, OSError, ValueError, TypeError)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
