"""The demo without its page: what it takes, what it makes of it, and the words for what it refuses."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice

import fastenh
from fastenh.cli import main
from fastenh.demo.enhancement import Limits, RecordingError, enhance, judge
from fastenh.demo.loudness import MOST, equally_loud, loudness
from fastenh.enhance.enhancer import Enhancer
from fastenh.evaluate.metrics import available

RATES = (8_000, 16_000, 44_100, 48_000)


def sine(rate: int, seconds: float = 3.0, level: float = 1.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 997 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def finished(steps):
    """(progress, what the steps return)."""
    progress = []
    while True:
        try:
            progress.append(next(steps))
        except StopIteration as end:
            return progress, end.value


@pytest.fixture
def enhancer(tiny_model) -> Enhancer:
    return Enhancer(tiny_model, "cpu", "float32")


@pytest.mark.parametrize("rate", RATES)
def test_loudness_of_a_sine_is_that_of_the_recommendation(rate):
    assert loudness(sine(rate), rate) == pytest.approx(-3.01, abs=0.05)
    assert loudness(sine(rate, level=0.1), rate) == pytest.approx(-23.01, abs=0.05)


def test_pauses_do_not_count_for_loudness():
    speech = sine(16_000, level=0.1)
    with_pause = np.concatenate([speech, np.zeros(160_000, np.float32), 0.001 * speech])
    assert loudness(with_pause, 16_000) == pytest.approx(loudness(speech, 16_000), abs=0.5)


@pytest.mark.parametrize("samples", [np.zeros(16_000), np.zeros(0), np.full(100, 1e-9)])
def test_silence_has_no_loudness_and_is_left_as_it_is(samples):
    assert loudness(samples, 16_000) is None
    assert equally_loud(samples, samples, 16_000)[2] == 0.0


@pytest.mark.parametrize("level", [0.2, 3.0])
def test_both_versions_are_equally_loud_and_do_not_clip(level):
    before, after = sine(16_000, level=0.1), voice(48_000) * level
    played = equally_loud(before, after, 16_000)
    assert loudness(played[0], 16_000) == pytest.approx(loudness(played[1], 16_000), abs=0.01)
    assert max(np.abs(x).max() for x in played[:2]) <= 1.0 + 1e-6


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_a_recording_is_enhanced_as_the_command_does_it(tmp_path, enhancer, rate, channels):
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    samples = np.stack([voice(10 * rate, seed, rate) + noise(10 * rate, seed) for seed in range(channels)])
    soundfile.write(source, samples.T, rate, "FLOAT")
    progress, comparison = finished(enhance(source, enhancer, 12.0, Limits(), target))
    assert np.allclose(soundfile.read(target, dtype="float32", always_2d=True)[0].T, enhancer(samples, rate, 12.0))
    assert np.allclose(comparison.before, samples.mean(axis=0), atol=1e-6)
    assert comparison.after.size == comparison.before.size
    assert len(progress) > 2
    assert progress[-1] == (10.0, 10.0)
    assert any("8 kHz" in remark for remark in comparison.remarks) == (rate > 16_000)


def test_the_file_that_is_played_holds_both_side_by_side(tmp_path, enhancer):
    comparison = finished(enhance(SAMPLES / "english-pink.flac", enhancer, None, Limits(), tmp_path / "b.flac"))[1]
    gain = comparison.write_for_listening(tmp_path / "both.wav")
    both, rate = soundfile.read(tmp_path / "both.wav")
    assert both.shape == (comparison.before.size, 2)
    assert np.corrcoef(both[:, 0], comparison.before)[0, 1] > 0.9999
    assert np.corrcoef(both[:, 1], comparison.after)[0, 1] > 0.999
    assert 0.1 < abs(gain) < MOST
    assert loudness(both[:, 0], rate) == pytest.approx(loudness(both[:, 1], rate), abs=0.1)


def test_what_is_hardly_there_is_not_made_as_loud_as_the_rest():
    _, after, gain = equally_loud(sine(16_000), sine(16_000, level=0.003), 16_000)
    assert gain == MOST
    assert np.abs(after).max() == pytest.approx(0.03, rel=0.01)


def test_a_stopped_recording_leaves_no_file(tmp_path, enhancer):
    source = tmp_path / "a.wav"
    soundfile.write(source, noise(30 * 16_000), 16_000)
    steps = enhance(source, enhancer, None, Limits(), tmp_path / "out" / "b.wav")
    (tmp_path / "out").mkdir()
    next(steps)
    steps.close()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("seconds", "limits", "words"),
    [
        (0.0, Limits(), "there is no sound in it"),
        (3.0, Limits(minutes=0.04), "longer than the 0.04 minutes"),
        (40.0, Limits(megabytes=1), "1 MB, and this demo takes 1 MB at the most"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_in_words(tmp_path, enhancer, seconds, limits, words):
    source = tmp_path / "a.wav"
    soundfile.write(source, noise(int(seconds * 16_000)), 16_000)
    with pytest.raises(RecordingError, match=words):
        next(enhance(source, enhancer, None, limits, tmp_path / "b.wav"))


def test_the_metrics_are_those_of_both_versions(tmp_path, enhancer):
    source, clean = SAMPLES / "german-traffic.flac", SAMPLES / "clean" / "german-traffic.flac"
    comparison = finished(enhance(source, enhancer, None, Limits(), tmp_path / "b.flac"))[1]
    judge(comparison, source, clean)
    assert comparison.scores.keys() == {"before", "after"}
    assert set(comparison.scores["before"]) == set(available())
    assert comparison.scores["before"]["si_sdr"] != comparison.scores["after"]["si_sdr"]


def test_a_reference_of_another_recording_is_said_and_does_no_harm(tmp_path, enhancer):
    source = SAMPLES / "german-traffic.flac"
    comparison = finished(enhance(source, enhancer, None, Limits(), tmp_path / "b.flac"))[1]
    judge(comparison, source, SAMPLES / "clean" / "french-hum.wav")
    assert not comparison.scores
    assert "no metrics" in comparison.remarks[-1]
    assert "not a pair" in comparison.remarks[-1]


@pytest.mark.parametrize("missing", ["gradio", "matplotlib"])
def test_without_the_extra_one_line_says_what_to_install(monkeypatch, missing):
    find = importlib.util.find_spec
    hidden = {name: None for name in ("gradio", "matplotlib") if name == missing}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hidden.get(name, find) and object())
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 1
    assert result.output == f"Error: the demo needs {missing}: pip install 'fastenh[demo]'\n"


def test_a_model_that_is_no_checkpoint_is_said_before_the_page_is_served(tmp_path):
    pytest.importorskip("gradio")
    result = CliRunner().invoke(main, ["demo", "--model", str(tmp_path / "mine.safetensors")])
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path / 'mine.safetensors'}: no such checkpoint\n"


def test_samples_are_offered_wherever_the_package_is(tmp_path):
    gr = pytest.importorskip("gradio")
    from fastenh.demo.page import build
    from fastenh.demo.server import SAMPLES as PACKAGED

    assert PACKAGED.is_relative_to(Path(fastenh.__file__).parent)
    page = build(tmp_path, PACKAGED, Limits())
    offered = {block.value for block in page.blocks.values() if isinstance(block, gr.Button)}
    assert {path.stem for path in SAMPLES.iterdir() if path.is_file()} <= offered


def test_own_models_are_offered_before_those_that_ship(tmp_path):
    gr = pytest.importorskip("gradio")
    from fastenh.demo.page import build

    page = build(tmp_path, tmp_path, Limits(), ("run/best.safetensors",))
    (choice,) = [block for block in page.blocks.values() if isinstance(block, gr.Radio) and block.label == "Model"]
    assert choice.choices[0] == ("best.safetensors", "run/best.safetensors")
    assert ("dpt_complex", "dpt_complex") in choice.choices
    assert choice.value == "run/best.safetensors"
