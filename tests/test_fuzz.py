"""Any recording, and any damage to one: a result for each file, never a crash, a hang or a wrong length.

The network is a stub that halves, so that what comes out is known and a case takes milliseconds.
"""

import io
import itertools
import json
import os
import signal
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import voice
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fastenh import Enhancer
from fastenh.audio import files
from fastenh.enhance import job, layout, manifest
from fastenh.enhance.report import summarise, write_report
from fastenh.enhance.suitability import Clipping, Suitability
from fastenh.errors import printable

FORMATS = [
    ("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"),
    ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"),
    ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_24"), ("CAF", "ULAW"), ("CAF", "ALAC_16"),
    ("W64", "PCM_16"), ("RF64", "FLOAT"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip
LOSSY = ("ULAW", "IMA_ADPCM", "VORBIS", "OPUS", "MPEG_LAYER_III")


class Half(nn.Module):
    def forward(self, waveform):
        return 0.5 * waveform


def cases(count):
    return settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


@contextmanager
def seconds(limit):
    def late(*_):
        raise AssertionError(f"not done in {limit} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def enhance(folder, name, span=0.1, context=0.02):
    """The result of a job over one file. Nothing but its output is left behind."""
    enhancer = Enhancer(Half(), "cpu", span_seconds=span, context_seconds=context)
    target = folder / "out" / name
    with seconds(30):
        (result,) = job.run([layout.Task(folder / name, target)], enhancer, job.Options(threads=1))
    left = sorted(path.name for path in target.parent.iterdir()) if target.parent.exists() else []
    assert left == ([name] if result.status == "enhanced" else [])
    return result


recordings = st.tuples(
    st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000]) | st.integers(8000, 192_000),
    st.integers(1, 16),
    st.integers(0, 40_000) | st.sampled_from([0, 1, 2, 255, 256, 257, 1600, 2240, 2241]),
    st.sampled_from(FORMATS),
    st.floats(0.01, 0.4),
    st.floats(0.0, 0.1),
)


def any_recording(case):
    rate, channels, length, (container, subtype), span, context = case
    length //= max(1, channels // 4)
    signal = np.stack([voice(length, seed, rate) for seed in range(channels)], axis=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.x")
        try:
            soundfile.write(path, signal, rate, format=container, subtype=subtype)
            before = soundfile.info(path)
        except (soundfile.LibsndfileError, AssertionError):  # no such rate, channels or emptiness in this container
            assume(False)
        result = enhance(Path(folder), "a.x", span, context)
        assert result.status == "enhanced", result
        after = soundfile.info(path.parent / "out" / "a.x")
        given, enhanced = (files.read(p)[0] for p in (path, path.parent / "out" / "a.x"))
        assert given.shape == enhanced.shape
        kept = ("samplerate", "channels", "format", "subtype")
        assert [getattr(before, name) for name in kept] == [getattr(after, name) for name in kept]
        assert np.isfinite(enhanced).all()
        if rate == 16_000 and subtype not in LOSSY:
            np.testing.assert_allclose(enhanced, 0.5 * given, atol=1e-2 if subtype == "PCM_U8" else 1e-4)


@cases(40)
@given(recordings)
def test_any_recording(case):
    any_recording(case)


@pytest.mark.slow
@cases(3_000)
@given(recordings)
def test_any_recording_at_length(case):
    any_recording(case)


@cache
def sound(index, frames=1500):
    container, subtype = FORMATS[index]
    file = io.BytesIO()
    soundfile.write(file, np.stack([voice(frames), voice(frames, 1)], 1), 16_000, format=container, subtype=subtype)
    return file.getvalue()


EXTREME = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
places = st.integers(0, 100) | st.integers(0, 20_000)
changes = st.one_of(
    st.tuples(st.just("byte"), places, st.integers(0, 255)),
    st.tuples(st.just("word"), places, st.sampled_from(EXTREME) | st.integers(0, 2**32 - 1)),
    st.tuples(st.just("cut"), places, st.just(0)),
    st.tuples(st.just("remove"), places, st.integers(1, 64)),
    st.tuples(st.just("insert"), places, st.integers(1, 64)),
)
damaged = st.tuples(st.integers(0, len(FORMATS) - 1), st.lists(changes, min_size=1, max_size=4))


def mutate(content, changes):
    content = bytearray(content)
    for kind, place, value in changes:
        place %= len(content) + 1
        if kind == "byte":
            content[place : place + 1] = bytes([value])
        elif kind == "word":
            content[place : place + 4] = value.to_bytes(4, "little" if value % 2 else "big")
        elif kind == "cut":
            del content[place:]
        elif kind == "remove":
            del content[place : place + value]
        else:
            content[place:place] = bytes(range(value))
    return bytes(content)


def any_damage(case):
    index, changes = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.x")
        path.write_bytes(mutate(sound(index), changes))
        result = enhance(Path(folder), "a.x")
        if result.status == "failed":
            assert str(path) in result.error or "a.x" in result.error
            assert "\n" not in result.error
        else:
            given, enhanced = (files.read(p)[0] for p in (path, path.parent / "out" / "a.x"))
            assert given.shape == enhanced.shape
            assert np.isfinite(enhanced).all()


@cases(80)
@given(damaged)
def test_any_damage(case):
    any_damage(case)


@pytest.mark.slow
@cases(8_000)
@given(damaged)
def test_any_damage_at_length(case):
    any_damage(case)


def any_cut(index, share):
    """What is lost of a cut file is said, whatever its kind."""
    whole = sound(index, 20_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.x")
        path.write_bytes(whole)
        before = files.read(path)[0].shape[1]
        path.write_bytes(whole[: int(share * len(whole))])
        result = enhance(Path(folder), "a.x")
        if result.status == "failed":
            assert "a.x" in result.error
        elif soundfile.info(path.parent / "out" / "a.x").frames < before:
            assert result.warnings


@cases(60)
@given(st.integers(0, len(FORMATS) - 1), st.floats(0.0, 1.0))
def test_any_cut(index, share):
    any_cut(index, share)


@pytest.mark.slow
@cases(2_000)
@given(st.integers(0, len(FORMATS) - 1), st.floats(0.0, 1.0))
def test_any_cut_at_length(index, share):
    any_cut(index, share)


values = st.sampled_from([0.0, 1e-30, 1e-4, 0.5, -1.0, 3.0, 1e14]) | st.floats(-1.0, 1.0, width=32)
stretches = st.lists(st.tuples(values, values, st.integers(1, 40_000)), min_size=1, max_size=6)


def any_sound_is_judged(channels, given, made, places):
    """Without an error or a warning of NumPy's, and alike however it is cut into blocks."""
    given, made = (stretched(parts, channels) for parts in (given, made))
    made = np.resize(made, given.shape)
    said = []
    for cuts in ([], places):
        clipping, suitability = Clipping(channels, 16_000), Suitability(channels)
        edges = [0, *sorted(round(place * given.shape[1]) for place in cuts), given.shape[1]]
        with np.errstate(all="raise", under="ignore"):
            for begin, end in itertools.pairwise(edges):
                clipping.feed(given[:, begin:end])
                suitability.give(given[:, begin:end])
                suitability.take(made[:, begin:end])
            clipping.feed(given[:, :0], last=True)
            suitability.take(made[:, :0], last=True)
            said.append(clipping.remarks() + suitability.remarks())
    assert said[0] == said[1]


def stretched(parts, channels):
    """(channels, n): straight lines from value to value, and noise."""
    lines = np.concatenate([np.linspace(first, last, count) for first, last, count in parts])
    hiss = np.random.default_rng(0).standard_normal((channels, lines.size))
    return (lines * (1 + 0.1 * hiss)).astype(np.float32)


judged = st.integers(1, 3), stretches, stretches, st.lists(st.floats(0, 1), max_size=5)


@cases(40)
@given(*judged)
def test_any_sound_is_judged(channels, given, made, places):
    any_sound_is_judged(channels, given, made, places)


@pytest.mark.slow
@cases(2_000)
@given(*judged)
def test_any_sound_is_judged_at_length(channels, given, made, places):
    any_sound_is_judged(channels, given, made, places)


names = st.binary(min_size=1, max_size=60).filter(lambda name: b"/" not in name and b"\0" not in name)


@cases(60)
@given(names)
def test_any_name(name):
    name = os.fsdecode(name) + ".wav"
    assume(not name.startswith("."))
    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder, name), voice(500)[None], files.Encoding(16_000, 1, "WAV", "PCM_16"))
        result = enhance(Path(folder), name)
        assert result.status == "enhanced", result
        write_report(Path(folder, "report"), [result], summarise([result], 1.0), {})
        (record,) = json.loads(Path(folder, "report").read_bytes())["files"]
        assert os.fsencode(record["source"]) == os.fsencode(result.source)
        assert printable(str(result.source)).isprintable()


ENTRY = b'{"target": "a.wav", "written": [1, 2], "source": "x", "read": [1, 2], "settings": {}}\n'
lines = st.lists(st.binary(max_size=30) | st.just(ENTRY) | st.integers(0, len(ENTRY)).map(lambda n: ENTRY[:n]))


@cases(100)
@given(lines)
def test_any_manifest(lines):
    """No content is an error, and what is added to it is found again."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "b.wav")
        target.write_bytes(b"made")
        Path(folder, manifest.NAME).write_bytes(b"".join(lines))
        before = manifest.FileManifest(Path(folder), {})
        before.changed(target, target)
        with before.claim(target) as mine:
            assert mine
            before.add(target, target, 1.0)
        before.close()
        assert manifest.FileManifest(Path(folder), {}).changed(target, target) == ""
        assert manifest.FileManifest(Path(folder), {"model": 1}).changed(target, target) == "other settings: model"
