"""Tags and bit rates: kept whole, byte for byte, and the sound behind them as it would be without."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile
from conftest import noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.audio import files, tags
from fastenh.enhance import job, layout


class Half(nn.Module):
    def forward(self, waveform):
        return 0.5 * waveform


def enhance(source, target, **options):
    (result,) = job.run([layout.Task(source, target)], Enhancer(Half(), "cpu"), job.Options(threads=1, **options))
    assert result.status == "enhanced", result
    return result


def text_frame(name, text):
    content = b"\x03" + text.encode()
    return name + struct.pack(">I", len(content)) + b"\0\0" + content


def id3(size=0):
    """ID3v2.4 with an album artist, a comment of the user's, and a picture of ``size`` bytes."""
    picture = b"\0image/png\0\x03\0" + os.urandom(size)
    seven = lambda n: bytes((n >> shift) & 0x7F for shift in (21, 14, 7, 0))  # noqa: E731
    frames = text_frame(b"TIT2", "Gespräch") + text_frame(b"TPE2", "Ada") + text_frame(b"TXXX", "mood\0calm")
    frames += b"APIC" + seven(len(picture)) + b"\0\0" + picture
    return b"ID3\4\0\0" + seven(len(frames)) + frames


def comments(size=0):
    """Of Vorbis: a list of NAME=value, with one of ``size`` bytes."""
    values = [b"TITLE=Gespr\xc3\xa4ch", b"ALBUMARTIST=Ada", b"MOOD=calm", b"X=" + b"y" * size]
    return struct.pack("<I", len(values)) + b"".join(struct.pack("<I", len(v)) + v for v in values)


def picture(size):
    """A block of FLAC: the front cover."""
    return struct.pack(">II9sI", 3, 9, b"image/png", 0) + bytes(16) + struct.pack(">I", size) + os.urandom(size)


def with_tags(path, container, blocks, rate=16_000, subtype=None, length=30_000, **more):
    soundfile.write(path, np.stack([voice(length), noise(length)], 1), rate, format=container, subtype=subtype, **more)
    plain = files.read(path)[0]
    tags.insert(path, container, blocks)
    return plain


BROADCAST = b"a talk".ljust(256, b"\0") + b"Ada".ljust(64, b"\0") + struct.pack("<Q", 48_000 * 3600).rjust(90, b"\0")
INFO = b"INFOINAM" + struct.pack("<I", 5) + b"talk\0\0"
CASES = [
    ("a.wav", "WAV", None, ((b"bext", BROADCAST + bytes(260)), (b"iXML", b"<BWFXML/>"), (b"LIST", INFO))),
    ("a.wav", "RF64", None, ((b"bext", BROADCAST + bytes(260)), (b"iXML", b"<BWFXML/>"))),
    ("a.aiff", "AIFF", None, ((b"NAME", b"talk"), (b"ANNO", b"odd"), (b"ID3 ", id3(50)))),
    ("a.mp3", "MP3", None, ((b"before", id3(3_000_000)), (b"behind", b"TAG" + b"talk".ljust(125, b"\0")))),
    ("a.flac", "FLAC", None, ((b"\4", struct.pack("<I", 3) + b"abc" + comments(99_999)), (b"\6", picture(70_000)))),
    ("a.ogg", "OGG", "VORBIS", ((b"comments", comments(300_000) + b"\1"),)),
    ("a.ogg", "OGG", "VORBIS", ((b"comments", comments(1) + b"\1"),)),
    ("a.opus", "OGG", "OPUS", ((b"comments", comments(65_025)),)),
    ("a.opus", "OGG", "OPUS", ((b"comments", comments(255 * 255 - 90)),)),
]


@pytest.mark.parametrize(("name", "container", "subtype", "blocks"), CASES)
def test_all_tags_are_kept_byte_for_byte(tmp_path, name, container, subtype, blocks):
    plain = with_tags(tmp_path / name, container, blocks, subtype=subtype)
    assert tags.extract(tmp_path / name, container) == blocks
    warnings = []
    np.testing.assert_array_equal(files.read(tmp_path / name, warnings)[0], plain)
    result = enhance(tmp_path / name, tmp_path / f"out-{name}")
    assert (warnings, result.warnings) == ([], [])
    assert tags.extract(tmp_path / f"out-{name}", container) == blocks
    after = files.read(tmp_path / f"out-{name}", warnings)[0]
    assert after.shape == plain.shape
    assert warnings == []
    np.testing.assert_allclose(after, 0.5 * plain, atol=0.2 if container in ("OGG", "MP3") else 1e-4)
    if container in ("WAV", "AIFF"):
        size = (tmp_path / f"out-{name}").read_bytes()[4:8]
        order = "little" if container == "WAV" else "big"
        assert int.from_bytes(size, order) == (tmp_path / f"out-{name}").stat().st_size - 8


@pytest.mark.parametrize(("name", "container", "subtype", "blocks"), CASES)
def test_another_program_reads_them(tmp_path, name, container, subtype, blocks):
    av = pytest.importorskip("av")
    with_tags(tmp_path / name, container, blocks, subtype=subtype)
    enhance(tmp_path / name, tmp_path / f"out-{name}")
    found = []
    for path in (tmp_path / name, tmp_path / f"out-{name}"):
        with av.open(str(path)) as file:
            metadata = file.metadata | file.streams.audio[0].metadata
            assert sum(frame.samples for frame in file.decode(audio=0)) > 29_000
            found.append({k.lower(): v for k, v in metadata.items() if k.lower() not in ("encoder", "encoded_by")})
    assert found[0] == found[1] != {}
    if container not in ("WAV", "RF64", "AIFF"):
        assert {"mood": "calm", "album_artist": "Ada"}.items() <= found[1].items()


def test_what_soundfile_writes_is_kept_as_before(tmp_path):
    for name, container in (("a.flac", "FLAC"), ("a.ogg", "OGG"), ("a.wav", "WAV"), ("a.mp3", "MP3")):
        with soundfile.SoundFile(tmp_path / name, "w", 16_000, 1, format=container) as file:
            file.title, file.artist = "Talk", "Ada"
            file.write(voice(5000))
        enhance(tmp_path / name, tmp_path / f"out-{name}")
        assert files.read(tmp_path / f"out-{name}")[1].tags.items() >= {"title": "Talk", "artist": "Ada"}.items()
        other = ".wav" if container != "WAV" else ".flac"
        enhance(tmp_path / name, tmp_path / f"other{other}", overwrite=True)
        assert files.read(tmp_path / f"other{other}")[1].tags["title"] == "Talk"


@pytest.mark.parametrize(
    ("name", "container", "subtype", "level"),
    [
        ("a.mp3", "MP3", "MPEG_LAYER_III", 0.0), ("a.mp3", "MP3", "MPEG_LAYER_III", 0.7),
        ("a.opus", "OGG", "OPUS", 0.2), ("a.opus", "OGG", "OPUS", 0.9),
        ("a.ogg", "OGG", "VORBIS", 0.0), ("a.ogg", "OGG", "VORBIS", 0.9),
    ],
)  # fmt: skip
def test_bit_rates_are_kept_and_given(tmp_path, name, container, subtype, level):
    mode = {"bitrate_mode": "CONSTANT"} if container == "MP3" else {}
    blocks = ((b"before", id3(200_000)),) if container == "MP3" else ()
    options = {"subtype": subtype, "length": 240_000, "compression_level": level, **mode}
    with_tags(tmp_path / name, container, blocks, 48_000, **options) if blocks else soundfile.write(
        tmp_path / name, np.stack([voice(240_000), noise(240_000)], 1), 48_000, subtype, None, container,
        compression_level=level, **mode,
    )  # fmt: skip
    enhance(tmp_path / name, tmp_path / f"out-{name}")
    before, after = (files.read(tmp_path / n)[1].bit_rate for n in (name, f"out-{name}"))
    assert before > 0
    assert after == pytest.approx(before, rel=0.05)
    enhance(tmp_path / name, tmp_path / f"given-{name}", bit_rate=96_000)
    assert files.read(tmp_path / f"given-{name}")[1].bit_rate == pytest.approx(96_000, rel=0.1)


@pytest.mark.parametrize(("name", "container", "subtype", "blocks"), CASES)
def test_damaged_tags_are_no_error(tmp_path, name, container, subtype, blocks):
    """Cut anywhere, or of absurd sizes: what can be read is enhanced, and nothing hangs."""
    with_tags(tmp_path / name, container, blocks, subtype=subtype, length=2000)
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    for _ in range(30):
        content = bytearray(whole)
        place = int(rng.integers(0, min(len(content), 400)))
        content[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"abcd"])
        (tmp_path / "damaged").write_bytes(bytes(content[: int(rng.integers(1, len(content) + 1))]))
        found = tags.extract(tmp_path / "damaged", container)
        assert sum(len(part) for _, part in found) <= len(content)


def test_comments_whose_lengths_do_not_add_up_are_left_out(tmp_path):
    """Decoders refuse a FLAC with such a block, so that an output would be lost by them."""
    blocks = ((b"\4", struct.pack("<I", 3) + b"abc" + comments()),)
    with_tags(tmp_path / "a.flac", "FLAC", blocks)
    content = (tmp_path / "a.flac").read_bytes()
    title = b"TITLE=Gespr\xc3\xa4ch"
    absurd = content.replace(struct.pack("<I", len(title)) + title, struct.pack("<I", 65_000) + title)
    assert absurd != content
    (tmp_path / "a.flac").write_bytes(absurd)
    assert tags.extract(tmp_path / "a.flac", "FLAC") == ()


def test_sums_of_ogg_are_those_of_libogg(tmp_path):
    """Every page of a file that libsndfile wrote keeps its check sum when its pages are numbered again."""
    soundfile.write(tmp_path / "a.ogg", noise(50_000), 16_000)
    before = (tmp_path / "a.ogg").read_bytes()
    with (tmp_path / "a.ogg").open("r+b") as file:
        tags._number_pages(file)
    assert (tmp_path / "a.ogg").read_bytes() == before


@pytest.mark.parametrize(("begin", "end", "content"), [(0, 0, b"abc"), (3, 9, b""), (5, 7, b"x" * 50), (10, 10, b"y")])
def test_bytes_are_moved_in_place(begin, end, content, monkeypatch):
    monkeypatch.setattr(tags, "_STEP", 4)
    file = io.BytesIO(b"0123456789")
    tags._replace(file, begin, end, content)
    assert file.getvalue() == b"0123456789"[:begin] + content + b"0123456789"[end:]
