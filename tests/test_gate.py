"""The gate of --vad: pauses go down, speech and its onsets stay, and nothing of the output's contract changes."""

import json

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.cli import main
from fastenh.enhance.gate import CLOSING, DEPTH_DB, HANGOVER, HOP, SpeechGate

RATE = 16_000
FLOOR = 10 ** (-DEPTH_DB / 20)


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, waveform):
        return self.gain * waveform


def gains(enhanced, noisy=None, ahead=2):
    """What the gate does to each sample of (C, n), which has no zeros."""
    gate = SpeechGate(len(enhanced), ahead)
    gate.hear(enhanced if noisy is None else noisy)
    return gate.give(enhanced, last=True) / enhanced


def bursts(level=1e-4):
    """Speech (noise, which has no gaps) in the first and in the fourth second, a faint hiss in the others; 6 s."""
    samples = noise(6 * RATE, 1, 0.1)
    samples[RATE : 3 * RATE] *= level
    samples[4 * RATE :] *= level
    return samples[None]


def test_pauses_go_down_and_speech_stays():
    gain = gains(bursts())[0]
    closed = round((HANGOVER + CLOSING) * RATE) + 3 * HOP
    for begin in (0, 3 * RATE):
        np.testing.assert_allclose(gain[begin : begin + RATE + round(HANGOVER * RATE) - HOP], 1)
        np.testing.assert_allclose(gain[begin + RATE + closed : begin + 3 * RATE - 5 * HOP], FLOOR, rtol=1e-5)


@pytest.mark.parametrize(("ahead", "frames"), [(2, 2), (0, 0), (-1, -1.5)])
def test_it_opens_before_speech(ahead, frames):
    """With no delay within a frame and a half behind its beginning."""
    opened = 3 * RATE - round(frames * HOP)
    np.testing.assert_allclose(gains(bursts(), ahead=ahead)[0, opened : 4 * RATE], 1)


def test_it_moves_smoothly():
    """Down at a constant rate in dB, up within a frame; never by a step."""
    gain = gains(bursts())[0]
    assert np.abs(np.diff(gain)).max() < 1.01 / HOP
    assert np.diff(20 * np.log10(gain[: 2 * RATE])).min() > -1.3 * DEPTH_DB / (CLOSING * RATE)


def test_what_the_model_turns_down_far_is_no_speech():
    """However it changes: of a recording without any speech nothing is left."""
    noisy = noise(3 * RATE, 2, 0.1)[None]
    assert gains(0.1 * noisy, noisy).min() == 1
    gain = gains(np.float32(0.01) * noisy, noisy)[0]
    np.testing.assert_allclose(gain[round((HANGOVER + CLOSING) * RATE) + 5 * HOP :], FLOOR, rtol=1e-5)


def test_a_quieter_speaker_is_speech():
    samples = noise(4 * RATE, 3, 0.1)[None]
    samples[:, 2 * RATE :] *= 0.05
    np.testing.assert_allclose(gains(samples), 1)


def test_each_channel_has_a_gate_of_its_own():
    first, second = bursts(), noise(6 * RATE, 4, 0.1)[None]
    both = gains(np.concatenate([first, second]))
    np.testing.assert_array_equal(both[:1], gains(first))
    np.testing.assert_array_equal(both[1:], gains(second))


@pytest.mark.parametrize("ahead", [-1, 0, 2])
@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 511, 513, 20_001])
def test_it_does_not_depend_on_blocks(length, ahead):
    enhanced = np.stack([voice(length, 1), noise(length)])
    noisy = enhanced + np.stack([noise(length, 2), noise(length, 3)])
    whole = SpeechGate(2, ahead)
    whole.hear(noisy)
    expected = whole.give(enhanced, last=True)
    assert expected.shape == enhanced.shape
    gate, parts = SpeechGate(2, ahead), []
    for begin in range(0, length, 333):
        gate.hear(noisy[:, begin : begin + 333])
        parts.append(gate.give(enhanced[:, begin : begin + 333]))
    parts.append(gate.give(enhanced[:, :0], last=True))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


@pytest.mark.parametrize(("ahead", "late"), [(-1, 0), (0, 1), (2, 3)])
def test_how_late_it_is(ahead, late):
    """Whole hops come back so many hops later: at once where sound is live."""
    gate, x, given = SpeechGate(1, ahead), noise(20 * HOP)[None], 0
    for hop in range(20):
        block = x[:, hop * HOP : (hop + 1) * HOP]
        gate.hear(block)
        given += gate.give(block).shape[1]
        assert given == max(0, hop + 1 - late) * HOP


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_the_enhancer_keeps_its_contract(rate):
    """Length, shape and speech to the sample; pauses 20 dB further down, the band above 8 kHz with them."""
    samples = np.concatenate([voice(rate, 1, rate), noise(2 * rate, 2, 1e-4), voice(rate + 77, 3, rate)])
    samples += noise(samples.size, 4, 1e-5)
    plain, gated = (Enhancer(Gain(1.0), "cpu", vad=vad)(samples, rate) for vad in (False, True))
    assert gated.shape == samples.shape
    np.testing.assert_allclose(plain, samples, atol=2e-5)
    pause = slice(2 * rate, 3 * rate - rate // 4)
    spectra = [np.abs(np.fft.rfft(made[pause])) for made in (plain, gated)]
    low = np.fft.rfftfreq(plain[pause].size, 1 / rate) < 7_900
    energies = [np.square(spectrum[low]).sum() for spectrum in spectra]
    assert abs(10 * np.log10(energies[0] / energies[1]) - DEPTH_DB) < 0.5
    if rate > RATE:
        above = [np.square(spectrum[~low]).sum() for spectrum in spectra]
        assert 10 * np.log10(above[0] / above[1]) > DEPTH_DB - 1
    for speech in (slice(rate // 10, rate), slice(3 * rate + rate // 10, 4 * rate)):
        np.testing.assert_allclose(gated[speech], plain[speech], atol=1e-4)


def test_speech_stays_to_the_last_sample():
    samples = noise(20_001, 1, 0.1)
    np.testing.assert_allclose(Enhancer(Gain(1.0), "cpu", vad=True)(samples, RATE), samples, atol=1e-6)


def test_the_command(tmp_path, tiny_checkpoint):
    source, report = tmp_path / "in" / "a.wav", tmp_path / "report.json"
    source.parent.mkdir()
    soundfile.write(source, np.concatenate([voice(20_000), noise(30_001, 0, 1e-4)]), RATE)
    command = ["enhance", source.parent, "-o", tmp_path / "out", "--model", tiny_checkpoint, "--report", report]
    for more, said in (([], ""), (["--vad"], "other settings: vad"), (["--vad"], "")):
        result = CliRunner().invoke(main, [*map(str, command), *more])
        assert result.exit_code == 0, result.output
        content = json.loads(report.read_text())
        assert content["settings"]["vad"] is bool(more)
        assert content["files"][0]["again"] == said
    assert soundfile.info(tmp_path / "out" / "a.wav").frames == 50_001
