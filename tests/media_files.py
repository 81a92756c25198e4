"""Containers to try, made by PyAV: sound that is known to the sample, pictures, subtitles, chapters, tags."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TAGS = {"title": "Gespräch", "artist": "Ada", "comment": "two words"}
PICTURE_STEPS = [0, 1, 2, 4, 5, 9, 10, 11, 14, 20]  # a variable frame rate, in 1/25 s


def sound(length: int, rate: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """(C, L) without two places alike, so that a shift by one sample shows: low-passed noise."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((channels, length + 64))
    spectrum = np.fft.rfft(white) * (np.fft.rfftfreq(length + 64, 1 / rate) < 4000)
    return (0.1 * np.fft.irfft(spectrum, length + 64)[:, :length]).astype(np.float32)


def make(
    path: Path,
    muxer: str,
    codec: str,
    rate: int = 48_000,
    seconds: float = 1.0,
    tracks: int = 1,
    picture: str = "",
    subtitles: str = "",
    begin: float = 0.0,
    bit_rate: int = 96_000,
    tags: dict[str, str] | None = None,
) -> list[np.ndarray]:
    """Write it, and return the sound of its tracks. begin: seconds at which the sound begins."""
    sounds = [sound(int(seconds * rate) + 123, rate, seed=n) for n in range(tracks)]
    with av.open(str(path), "w", format=muxer) as output:
        output.metadata.update(TAGS if tags is None else tags)
        pictures = _picture(output, picture) if picture else None
        options = {"strict": "experimental"} if codec == "vorbis" else {}
        streams = [output.add_stream(codec, rate=rate, layout="stereo", options=options) for _ in sounds]
        for number, stream in enumerate(streams):
            stream.metadata["language"] = ("eng", "deu", "fra")[number]
            if not codec.startswith(("pcm", "flac", "alac")):
                stream.bit_rate = bit_rate
        text = _subtitles(output, subtitles) if subtitles else None
        if picture:
            output.set_chapters([_chapter(0, 0, 500, "one"), _chapter(1, 500, 1000, "two")])
        packets = list(pictures or [])
        for stream, samples in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, round(begin * rate), Fraction(1, rate)
            packets += [*stream.encode(frame), *stream.encode(None)]
        packets += text or []
        for packet in sorted(packets, key=lambda p: float((p.dts if p.dts is not None else p.pts) * p.time_base)):
            output.mux(packet)
    return sounds


def _chapter(number: int, start: int, end: int, title: str) -> dict:
    return {"id": number, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}


def _picture(output, codec):
    stream = output.add_stream(codec, rate=25, width=64, height=48, pix_fmt="yuv420p")
    stream.bit_rate = 100_000
    stream.codec_context.time_base = Fraction(1, 25)
    if hasattr(stream, "set_display_rotation"):
        stream.set_display_rotation(90)
    rng = np.random.default_rng(9)
    for step in PICTURE_STEPS:
        frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = step, Fraction(1, 25)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _subtitles(output, codec):
    stream = output.add_mux_stream(codec)
    texts = [b"hello", b"and goodbye"]
    packets = []
    for number, text in enumerate(texts):
        packet = av.Packet(len(text).to_bytes(2, "big") + text if codec == "mov_text" else text)
        packet.pts = packet.dts = 400 * number
        packet.duration, packet.time_base, packet.stream = 300, Fraction(1, 1000), stream
        packets.append(packet)
    return packets


def decoded(path: Path, number: int = 0) -> tuple[np.ndarray, Fraction]:
    """(samples (C, L) of a sound track, the time of its first), by FFmpeg alone."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[number]
        resampler = av.AudioResampler("fltp", stream.layout.name, stream.rate)
        frames = list(container.decode(stream))
        parts = [part.to_ndarray() for frame in frames for part in resampler.resample(frame)]
        return np.concatenate(parts, axis=1), frames[0].pts * frames[0].time_base


def packets(path: Path, kind: str) -> list[tuple[bytes, float, float]]:
    """(content, pts, duration in seconds) of each packet of the streams of a kind."""
    with av.open(str(path)) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        found = [p for p in container.demux(streams) if p.size and p.pts is not None] if streams else []
        return [(bytes(p), float(p.pts * p.time_base), float((p.duration or 0) * p.time_base)) for p in found]


def lag(samples: np.ndarray, reference: np.ndarray) -> int:
    """By how many samples the one comes after the other."""
    a, b = (np.pad(x[0], (0, 1 << 17))[: 1 << 17] for x in (samples, reference))
    correlation = np.fft.irfft(np.fft.rfft(a) * np.conj(np.fft.rfft(b)))
    place = int(correlation.argmax())
    return place - correlation.size if place > correlation.size // 2 else place
