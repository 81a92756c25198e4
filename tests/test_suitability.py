"""Sound that the model was not made for is recognised, and speech is not taken for it."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.audio import files
from fastenh.cli import main
from fastenh.enhance.suitability import Clipping, Suitability

RATE = 16_000
SPEECH = ["english-pink.flac", "german-traffic.flac", "english-babble.flac"]
LOSS, TONES, ROOM = "dB off: hardly any of it is speech", "steady tones, as of music or singing", "very reverberant"


class Same(nn.Module):
    def forward(self, waveform):
        return waveform


@pytest.fixture(scope="module")
def shipped():
    return Enhancer.from_pretrained(device="cpu", dtype="float32")


def remarks(enhancer, samples, rate=RATE):
    found = []
    list(
        enhancer.stream(
            [np.atleast_2d(samples).astype(np.float32)], np.atleast_2d(samples).shape[0], rate, remarks=found
        )
    )
    return found


def speech(name, folder="clean"):
    samples = files.read_mono(SAMPLES / folder / name, RATE)
    return samples * (0.1 / samples.std())


def sine(frequency, seconds=5.0):
    return 0.1 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)


def melody(seconds=5.0, sung=False):
    """Notes of half a second: plucked, or held with the loudness of syllables."""
    time = np.arange(int(seconds * RATE)) / RATE
    steps = np.array([0, 4, 7, 12, 7, 4, 0, 5, 9, 12])[(time // 0.5).astype(int)]
    phase = 2 * np.pi * np.cumsum(220 * 2 ** (steps / 12)) / RATE
    loudness = np.sin(np.pi * (time % 0.5) / 0.5) if sung else np.exp(-3 * (time % 0.5))
    return 0.05 * loudness * sum(np.sin(k * phase) / k for k in range(1, 8))


def in_room(samples, seconds, seed=0):
    """With a tail as loud as the direct sound, that falls by 60 dB in this time."""
    length = int(seconds * RATE)
    tail = np.random.default_rng(seed).standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response = tail / np.sqrt(np.square(tail).sum())
    response[0] = 1.0
    size = len(samples) + length
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)


@pytest.mark.parametrize("name", SPEECH)
@pytest.mark.parametrize("folder", ["clean", ""])
def test_speech_with_and_without_noise_gives_no_warning(shipped, name, folder):
    assert remarks(shipped, speech(name, folder)) == []


@pytest.mark.parametrize("loudness", [0, -5])
def test_speech_in_loud_noise_gives_no_warning(shipped, loudness):
    clean = speech(SPEECH[0])
    assert remarks(shipped, clean + noise(len(clean), scale=0.1 * 10 ** (-loudness / 20))) == []


@pytest.mark.parametrize("samples", [sine(440), sine(100) + sine(2500), noise(5 * RATE)], ids=["tone", "two", "noise"])
def test_what_holds_no_speech_gives_a_warning(shipped, samples):
    (said,) = remarks(shipped, samples)
    assert LOSS in said


@pytest.mark.parametrize("sung", [False, True])
def test_music_gives_a_warning_whatever_the_model_makes_of_it(shipped, sung):
    """What the weights of the day take for speech is said to be music, and what they take away no speech."""
    (said,) = remarks(shipped, melody(4.0, sung))
    assert TONES in said or LOSS in said


@pytest.mark.parametrize("sung", [False, True])
def test_steady_tones_are_those_of_singing_and_not_of_speech(sung):
    same = Enhancer(Same(), "cpu")
    (said,) = remarks(same, melody(4.0, sung))
    assert TONES in said
    assert remarks(same, voice(5 * RATE)) == []
    hum = sum(sine(50 * k) / k for k in range(1, 4))
    assert remarks(same, voice(5 * RATE) + hum) == []


@pytest.mark.parametrize("name", SPEECH)
def test_a_large_room_gives_a_warning_with_the_time_of_its_echo(shipped, name):
    for seconds in (1.0, 2.0):
        (said,) = remarks(shipped, in_room(speech(name), seconds))
        assert said.startswith(ROOM)
        assert 0.8 * seconds < float(said.split("about ")[1].split(" s")[0]) < 1.7 * seconds
    assert remarks(shipped, in_room(speech(name), 0.25)) == []


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("loudness", [0.05, 1.0])
def test_clipping_is_counted(rate, loudness):
    samples = voice(5 * rate, rate=rate) + noise(5 * rate, scale=0.01)
    ceiling = 0.5 * np.abs(samples).max()
    share = np.mean(np.abs(samples) >= ceiling)
    assert clipping(loudness * samples, rate) == []
    (said,) = clipping(loudness * np.clip(samples, -ceiling, ceiling), rate)
    assert "% of the samples are clipped, which the model does not mend" in said
    assert float(said.split(" %")[0]) == pytest.approx(100 * share, rel=0.2)


def test_clipping_on_one_side_and_behind_a_click():
    samples = voice(5 * RATE) + noise(5 * RATE, scale=0.01)
    samples = np.minimum(samples, 0.4 * samples.max())
    samples[:10] = 1.5 * samples.max()
    assert len(clipping(samples)) == 1


@pytest.mark.parametrize("samples", [sine(100), sine(3000), noise(RATE), np.zeros(RATE), np.full(10, 0.1), np.zeros(0)])
def test_what_is_not_clipped(samples):
    assert clipping(samples) == []
    assert clipping(samples + 0.3) == []


def clipping(samples, rate=RATE):
    counted = Clipping(1, rate)
    counted.feed(samples[None].astype(np.float32), last=True)
    return counted.remarks()


def test_the_cutting_into_blocks_changes_nothing():
    rng = np.random.default_rng(0)
    given = np.stack([np.clip(voice(20 * RATE, seed), -0.05, 0.05) for seed in (1, 2)])
    made = 0.1 * np.stack([melody(20 * RATE / RATE / 4, sung=True)] * 4, 1).T.reshape(1, -1).repeat(2, 0)
    whole = Clipping(2, RATE), Suitability(2)
    parts = Clipping(2, RATE), Suitability(2)
    whole[0].feed(given, last=True)
    whole[1].give(given)
    whole[1].take(made, last=True)
    places = [0, *np.sort(rng.integers(0, given.shape[1], 30)), given.shape[1]]
    for begin, end in itertools.pairwise(places):
        parts[0].feed(given[:, begin:end], last=end == places[-1])
        parts[1].give(given[:, begin:end])
        parts[1].take(made[:, max(begin - 1000, 0) : max(end - 1000, 0)])
    parts[1].take(made[:, -1000:], last=True)
    assert whole[0].remarks()
    assert whole[0].remarks() == parts[0].remarks()
    assert LOSS in whole[1].remarks()[0] or TONES in whole[1].remarks()[0]
    assert whole[1].remarks() == parts[1].remarks()


def test_a_whisper_is_not_judged(shipped):
    assert remarks(shipped, 1e-4 * noise(2 * RATE, scale=1.0)) == []


def test_sound_of_any_size_is_judged_without_an_error(shipped):
    with np.errstate(all="raise", under="ignore"):
        for samples in (np.full(3 * RATE, 1e14), np.full(1, 0.5), noise(500), np.zeros((3, RATE))):
            remarks(Enhancer(Same(), "cpu"), samples)


def test_summary_and_report(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", speech(SPEECH[0]) * 0.3, RATE)
    soundfile.write(tmp_path / "in" / "b.wav", sine(440), RATE)
    torch.manual_seed(0)
    report = tmp_path / "report.json"
    result = CliRunner().invoke(main, ["enhance", str(tmp_path / "in"), "--dtype", "float32", "--report", str(report)])
    assert result.exit_code == 0, result.output
    assert "2 files enhanced, 1 with warnings" in result.output
    said = f"warning: {tmp_path / 'in' / 'b.wav'}: the model took"
    assert said in result.output.replace("\n", "")
    first, second = json.loads(report.read_text())["files"]
    assert first["warnings"] == []
    assert LOSS in second["warnings"][0]
