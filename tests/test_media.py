"""Containers by PyAV: sound replaced, and everything else as it was."""

import json
import os
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SAMPLES
from torch import nn

pytest.importorskip("av")
import av
from media_files import TAGS, decoded, lag, make, packets, sound
from test_enhance_resilience import largest_file

from fastenh import Enhancer
from fastenh.audio import files
from fastenh.audio.files import AudioError
from fastenh.cli import main
from fastenh.enhance import job, layout


class Half(nn.Module):
    def forward(self, waveform):
        return 0.5 * waveform


def enhance(source, target, **options):
    enhancer = Enhancer(Half(), "cpu")
    (result,) = job.run([layout.Task(source, target)], enhancer, job.Options(threads=1, **options))
    return result


# ending, muxer, encoder, rate, what else is in it
KINDS = [
    (".m4a", "ipod", "aac", 44_100, {}),
    (".m4a", "ipod", "alac", 44_100, {}),
    (".mp4", "mp4", "aac", 48_000, {"picture": "mpeg4", "subtitles": "mov_text", "tracks": 2}),
    (".mp4", "mp4", "libopus", 48_000, {"picture": "mpeg4"}),
    (".mov", "mov", "pcm_s16le", 48_000, {"picture": "mpeg4"}),
    (".mov", "mov", "aac", 48_000, {"picture": "mpeg4"}),
    (".mkv", "matroska", "libopus", 48_000, {"picture": "mpeg4", "subtitles": "subrip", "tracks": 2}),
    (".mkv", "matroska", "aac", 48_000, {"picture": "mpeg4"}),
    (".mkv", "matroska", "ac3", 48_000, {}),
    (".mkv", "matroska", "libmp3lame", 44_100, {}),
    (".mka", "matroska", "flac", 44_100, {}),
    (".webm", "webm", "libopus", 48_000, {"picture": "libvpx"}),
    (".wma", "asf", "wmav2", 44_100, {}),
    (".wmv", "asf", "wmav2", 22_050, {"picture": "wmv2"}),
    (".aac", "adts", "aac", 44_100, {}),
]
TECHNICAL = ("encoder", "ENCODER", "compatible_brands")
LOSSLESS = ("alac", "flac", "pcm_s16le")


@pytest.mark.parametrize(("ending", "muxer", "codec", "rate", "more"), KINDS)
def test_every_kind_of_container(tmp_path, ending, muxer, codec, rate, more):
    """Length, place and codec of the sound, the packets of everything else, chapters and tags."""
    source, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    tracks = make(source, muxer, codec, rate, **more)
    result = enhance(source, target)
    assert (result.status, result.warnings) == ("enhanced", [])
    for number in range(len(tracks)):
        (before, begin), (after, begin_after) = decoded(source, number), decoded(target, number)
        assert after.shape == before.shape
        assert lag(after, before) == 0
        assert abs(begin_after - begin) <= Fraction(1, 1000)  # the time stamps of Matroska and ASF
        worst = 2e-4 if codec in LOSSLESS else 0.05
        inner = slice(3000, -3000)  # the band above 4 kHz is empty: at the ends it is not
        assert np.sqrt(np.mean(np.square(after[:, inner] - 0.5 * before[:, inner]))) < worst
    for kind in ("video", "subtitle"):
        before, after = packets(source, kind), packets(target, kind)
        assert [content for content, *_ in after] == [content for content, *_ in before]
        np.testing.assert_allclose([p[1:] for p in after], [p[1:] for p in before], atol=1.1e-3)
        assert bool(before) == ((kind == "video" and "picture" in more) or (kind == "subtitle" and "subtitles" in more))
    with av.open(str(source)) as a, av.open(str(target)) as b:
        assert [s.type for s in b.streams] == [s.type for s in a.streams]
        assert [s.codec_context.name for s in b.streams.audio] == [s.codec_context.name for s in a.streams.audio]
        assert [s.metadata.get("language") for s in b.streams] == [s.metadata.get("language") for s in a.streams]
        if "picture" in more:
            assert next(b.decode(video=0)).rotation == next(a.decode(video=0)).rotation
        assert [c["metadata"] for c in b.chapters()] == [c["metadata"] for c in a.chapters()]
        assert dict(b.metadata).items() >= {k: v for k, v in a.metadata.items() if k not in TECHNICAL}.items()
        assert muxer == "adts" or {k.lower(): v for k, v in b.metadata.items()}.items() >= TAGS.items()


def test_the_length_of_mp4_is_that_before_the_encoder_filled_its_last_frame(tmp_path):
    (samples,) = make(tmp_path / "a.m4a", "ipod", "aac", 44_100)
    read = files.read(tmp_path / "a.m4a")[0]
    assert read.shape == samples.shape
    assert lag(read, samples) == 0


def test_sound_that_begins_later_stays_there(tmp_path):
    for ending, muxer, codec in ((".mkv", "matroska", "libopus"), (".mov", "mov", "pcm_s16le"), (".mov", "mov", "aac")):
        source, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
        make(source, muxer, codec, begin=0.5, picture="mpeg4")
        assert enhance(source, target, overwrite=True).status == "enhanced"
        (before, begin), (after, begin_after) = decoded(source), decoded(target)
        moved = Fraction(lag(after, before), 48_000) + begin_after - begin
        assert abs(moved) <= Fraction(2, 1000)
        assert [p[:2] for p in packets(target, "video")] == [p[:2] for p in packets(source, "video")]


def test_a_gap_between_time_stamps_is_silence(tmp_path):
    """A recording of a stream that was interrupted: what comes after the gap stays with its picture."""
    path, samples = tmp_path / "a.mkv", sound(48_000, 48_000, 1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for first, place in ((0, 0), (24_000, 72_000)):
            frame = av.AudioFrame.from_ndarray(samples[:, first : first + 24_000], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, place, Fraction(1, 48_000)
            for packet in stream.encode(frame):
                output.mux(packet)
    read = files.read(path)[0]
    assert read.shape == (1, 96_000)
    assert not read[:, 24_000:72_000].any()
    np.testing.assert_allclose(read[:, 72_000:], samples[:, 24_000:], atol=1e-4)


def test_one_track_of_several(tmp_path):
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    make(source, "matroska", "libopus", tracks=3)
    assert enhance(source, target, track=2).status == "enhanced"
    levels = [np.std(decoded(target, n)[0]) / np.std(decoded(source, n)[0]) for n in range(3)]
    np.testing.assert_allclose(levels, [1, 0.5, 1], atol=0.05)
    assert "no sound track 4; it has 3" in enhance(source, tmp_path / "c.mkv", track=4).error
    assert not (tmp_path / "c.mkv").exists()
    flac = enhance(source, tmp_path / "d.flac")
    assert flac.warnings == ["3 sound tracks, the first one taken; --track takes another"]
    assert enhance(source, tmp_path / "e.flac", track=2).warnings == []


@pytest.mark.parametrize(("muxer", "codec"), [("ipod", "aac"), ("matroska", "libopus"), ("asf", "wmav2")])
def test_bit_rates_are_kept_or_given(tmp_path, muxer, codec):
    ending = {"ipod": ".m4a", "matroska": ".mkv", "asf": ".wma"}[muxer]
    source = tmp_path / f"a{ending}"
    make(source, muxer, codec, seconds=4, bit_rate=192_000, picture="")
    sizes = [source.stat().st_size]
    for rate in (None, 64_000):
        assert enhance(source, tmp_path / f"b{rate}{ending}", bit_rate=rate).status == "enhanced"
        sizes.append((tmp_path / f"b{rate}{ending}").stat().st_size)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)
    assert sizes[2] < 0.5 * sizes[0]


def test_what_ffmpeg_does_not_write_is_replaced_and_named(tmp_path):
    source, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    make(source, "matroska", "vorbis", 44_100)
    assert enhance(source, target).warnings == [
        "sound track 1: vorbis cannot be written: opus taken",
        "sound track 1: opus has no 44100 Hz: 48000 Hz taken",
    ]
    before, after = decoded(source)[0].shape[1] / 44_100, decoded(target)[0].shape[1] / 48_000
    assert after == pytest.approx(before, abs=1e-3)


def test_covers_and_attachments(tmp_path):
    for ending in (".m4a", ".mkv"):
        source, target = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
        with av.open(str(source), "w", format="mp4" if ending == ".m4a" else "matroska") as output:
            stream = output.add_stream("aac", rate=48_000, layout="mono")
            cover = output.add_stream("mjpeg", rate=1, width=16, height=16, pix_fmt="yuvj420p")
            cover.disposition = av.stream.Disposition.attached_pic
            if ending == ".mkv":
                output.add_attachment("font.ttf", "application/x-truetype-font", b"font" * 10)
            output.metadata["album_artist"] = "Ada"
            image = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            image = image.reformat(format="yuvj420p")
            image.pts, image.time_base = 0, Fraction(1, 1)
            frame = av.AudioFrame.from_ndarray(sound(9600, 48_000, 1), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            for packet in [*cover.encode(image), *cover.encode(None), *stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
        assert enhance(source, target).warnings == []
        with av.open(str(source)) as a, av.open(str(target)) as b:
            assert [(s.type, s.disposition) for s in b.streams] == [(s.type, s.disposition) for s in a.streams]
            covers = [[bytes(p) for p in c.demux(c.streams.video) if p.size] for c in (a, b)]
            assert covers[0] == covers[1] != []
            attached = [[(s.mimetype, s.data) for s in c.streams if s.type == "attachment"] for c in (a, b)]
            assert attached[0] == attached[1]
            assert {k.lower(): v for k, v in b.metadata.items()}["album_artist"] == "Ada"


def test_pictures_that_are_shown_in_another_order_than_they_are_stored(tmp_path):
    """B frames: their time stamps to decode begin before zero."""
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    try:
        make(source, "mp4", "aac", picture="libx264")
    except (ValueError, av.FFmpegError):
        pytest.skip("this FFmpeg cannot write H.264")
    assert enhance(source, target).warnings == []
    assert packets(target, "video") == packets(source, "video")


def test_a_folder_of_all_kinds(tmp_path):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / "a.m4a", "ipod", "aac")
    make(tmp_path / "in" / "b.mkv", "matroska", "libopus", picture="mpeg4")
    (tmp_path / "in" / "c.m4a").write_bytes(b"no such thing" * 100)
    (tmp_path / "in" / "d.avi").touch()
    files.write(tmp_path / "in" / "e.wav", sound(4800, 48_000, 1), files.Encoding(48_000, 1, "WAV", "PCM_16"))
    arguments = ["enhance", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--report", str(tmp_path / "report")]
    dry = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert dry.exit_code == 1
    assert "3 files to be enhanced, 1 failed" in dry.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "c.m4a: cannot be read as sound" in done.output
    assert "3 files enhanced, 1 failed" in done.output
    assert "passed over: 1 .avi" in done.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] != ".") == ["a.m4a", "b.mkv", "e.wav"]
    again = CliRunner().invoke(main, arguments)
    assert "3 skipped" in again.output
    other = CliRunner().invoke(main, [*arguments, "--bitrate", "64k"])
    assert "again: input or settings changed" in other.output
    assert json.loads((tmp_path / "report").read_text())["settings"]["bit_rate"] == 64_000


def test_the_sound_of_a_film_serves_as_a_recording(tmp_path):
    make(tmp_path / "a.mkv", "matroska", "flac", 48_000, picture="mpeg4")
    assert files.read_mono(tmp_path / "a.mkv", 16_000).shape == (16_041,)
    assert files.count_frames(tmp_path / "a.mkv") == pytest.approx(48_123, abs=48)
    assert enhance(tmp_path / "a.mkv", tmp_path / "a.flac").status == "enhanced"
    assert files.read(tmp_path / "a.flac")[0].shape == (2, 48_123)


def test_wrong_options(tmp_path):
    for options in (["--bitrate", "fast"], ["--bitrate", "5"], ["--track", "0"]):
        done = CliRunner().invoke(main, ["enhance", str(SAMPLES / "french-hum.wav"), *options])
        assert done.exit_code == 2


def test_names_of_any_bytes(tmp_path):
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.m4a"))
    make(tmp_path / "a.m4a", "ipod", "aac")
    (tmp_path / "a.m4a").rename(source)
    assert enhance(source, source.with_suffix(".out.m4a")).status == "enhanced"


def test_playlists_are_not_followed(tmp_path, monkeypatch):
    """FFmpeg knows text files that name other files and addresses."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.mka", "matroska", "flac", 44_100)
    (tmp_path / "list.mka").write_text("ffconcat version 1.0\nfile 'a.mka'\n")
    with pytest.raises(AudioError, match="cannot be read as sound"):
        files.read(tmp_path / "list.mka")


@pytest.mark.parametrize("ending", [".m4a", ".mkv", ".wma", ".aac"])
@pytest.mark.parametrize("size", [0, 100, 9000])
def test_no_room_for_the_output(tmp_path, ending, size):
    muxer, codec = {".m4a": ("ipod", "aac"), ".wma": ("asf", "wmav2"), ".aac": ("adts", "aac")}.get(
        ending, ("matroska", "libopus")
    )
    source = tmp_path / f"a{ending}"
    make(source, muxer, codec, 48_000, 3)
    with largest_file(size):
        result = enhance(source, tmp_path / "out" / f"a{ending}")
    assert result.status == "failed"
    assert "cannot be written (File too large)" in result.error
    assert list((tmp_path / "out").iterdir()) == []


def test_a_job_that_is_stopped_leaves_nothing(tmp_path):
    make(tmp_path / "a.mkv", "matroska", "libopus", 48_000, 20, picture="mpeg4")
    stop, seen = threading.Event(), []

    class Stopping(nn.Module):
        def forward(self, waveform):
            seen.append(1)
            stop.set()
            return waveform

    tasks = [layout.Task(tmp_path / "a.mkv", tmp_path / "out" / "a.mkv")]
    assert list(job.run(tasks, Enhancer(Stopping(), "cpu", span_seconds=0.5), job.Options(threads=1), stop=stop)) == []
    assert seen
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("codec", "muxer", "form"), [("alac", "mp4", "s32p"), ("flac", "matroska", "s32")])
def test_24_bits_stay(tmp_path, codec, muxer, form):
    ending = {"mp4": ".m4a", "matroska": ".mka"}[muxer]
    samples = sound(9600, 48_000)
    with av.open(str(tmp_path / f"a{ending}"), "w", format=muxer) as output:
        stream = output.add_stream(codec, rate=48_000, layout="stereo")
        stream.format = form
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    assert enhance(tmp_path / f"a{ending}", tmp_path / f"b{ending}").warnings == []
    np.testing.assert_allclose(decoded(tmp_path / f"b{ending}")[0], 0.5 * samples, atol=3 / 2**23)
