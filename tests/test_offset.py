"""A DC offset is taken out; sound without one is not touched."""

import numpy as np
import pytest
import soundfile
from conftest import SAMPLES, noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.audio.files import read
from fastenh.audio.listing import list_audio
from fastenh.enhance import job, layout
from fastenh.enhance.offset import Offset
from fastenh.evaluate.metrics import si_sdr

RATE = 16_000


class Same(nn.Module):
    def forward(self, waveform):
        return waveform


def without(signal, block=None, rate=RATE):
    offset = Offset(len(signal), rate)
    size = block or max(1, signal.shape[1])
    parts = [offset.feed(signal[:, i : i + size]) for i in range(0, signal.shape[1], size)]
    return np.concatenate([*parts, offset.feed(signal[:, :0], last=True)], axis=1), offset.largest


@pytest.mark.parametrize("offset", [0.02, -0.05, 0.3, -0.9])
@pytest.mark.parametrize("seconds", [0.3, 2.0, 20.5])
def test_a_constant_offset_goes_and_the_sound_stays(offset, seconds):
    sound = voice(int(seconds * RATE)) + noise(int(seconds * RATE), scale=0.01)
    found, largest = without((sound + np.float32(offset))[None])
    assert found.dtype == np.float32
    assert abs(largest - abs(offset)) < 0.003
    assert abs(found.mean()) < 1e-3
    np.testing.assert_allclose(found[0], sound, atol=5e-3)


@pytest.mark.parametrize("path", list_audio(SAMPLES) + list_audio(SAMPLES / "clean"), ids=lambda path: path.name)
def test_sound_without_an_offset_is_not_touched(path):
    samples, encoding = read(path)
    found, largest = without(samples, rate=encoding.sample_rate)
    assert largest == 0
    np.testing.assert_array_equal(found, samples)


@pytest.mark.parametrize("block", [1000, 16_000, 33_333])
def test_blocks_change_nothing(block):
    signal = np.stack([voice(50_000) + np.float32(0.1), noise(50_000)])
    whole, _ = without(signal)
    np.testing.assert_array_equal(without(signal, block)[0], whole)
    np.testing.assert_array_equal(whole[1], signal[1])  # a channel of its own


def test_silence_before_and_behind_stays_and_makes_no_steps():
    sound = voice(10 * RATE) + np.float32(0.2)
    signal = np.concatenate([np.zeros(3 * RATE, np.float32), sound, np.zeros(2 * RATE, np.float32)])
    found = without(signal[None])[0][0]
    assert not found[: 3 * RATE].any()
    assert not found[13 * RATE :].any()
    np.testing.assert_allclose(found[3 * RATE : 13 * RATE], sound - 0.2, atol=5e-3)
    assert abs(found[3 * RATE : 13 * RATE].mean()) < 1e-3


def test_an_offset_that_begins_later_is_found():
    sound = voice(30 * RATE)
    found = without((sound + np.float32(0.3) * (np.arange(30 * RATE) > 10 * RATE))[None])[0][0]
    assert abs(found[17 * RATE :].mean()) < 1e-3
    assert abs(found[: 8 * RATE] - sound[: 8 * RATE]).max() == 0
    assert np.abs(np.diff(found - sound)).max() < 0.31  # the step that is in the input, and no more


def test_nothing_one_sample_and_odd_rates():
    for length in (0, 1, 100):
        signal = np.ones((2, length), np.float32)
        np.testing.assert_array_equal(without(signal)[0], signal)
    assert abs(without(np.ones((1, 3000), np.float32), rate=1000.5)[0]).max() < 1e-6


def test_the_report_says_so_and_the_output_has_none(tmp_path):
    """Also of the share of the input that --atten-lim keeps."""
    soundfile.write(tmp_path / "a.wav", 0.3 + 0.5 * voice(3 * RATE), RATE)
    task = layout.Task(tmp_path / "a.wav", tmp_path / "b.wav")
    for limit in (None, 6.0):
        (result,) = job.run([task], Enhancer(Same(), "cpu"), job.Options(overwrite=True, atten_lim_db=limit))
        assert result.warnings == ["a DC offset of 0.3 of full scale was removed"]
        assert abs(soundfile.read(tmp_path / "b.wav")[0].mean()) < 1e-3


@pytest.mark.parametrize("offset", [0.05, 0.3])
def test_the_shipped_model_loses_nothing_by_an_offset(offset):
    noisy, encoding = read(SAMPLES / "english-pink.flac")
    clean, _ = read(SAMPLES / "clean" / "english-pink.flac")
    enhancer = Enhancer.from_pretrained(device="cpu", dtype="float32")
    plain, shifted = (enhancer(noisy[0] + np.float32(d), encoding.sample_rate) for d in (0.0, offset))
    assert abs(shifted.mean()) < 1e-3
    assert abs(si_sdr(plain, clean[0]) - si_sdr(shifted, clean[0])) < 0.1
