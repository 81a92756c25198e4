"""The band above 8 kHz: its gain, its seams, and what becomes of hiss and of consonants."""

import numpy as np
import pytest
import soundfile
from conftest import SAMPLES, noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.enhance.upper_band import HOP, TopBandGain, UpperBand

RATES = [22_050, 24_000, 32_000, 44_100, 48_000, 96_000]


class Gain(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, waveform):
        return self.gain * waveform


def band(samples, rate, low, high):
    frequencies = np.fft.rfftfreq(samples.size, 1 / rate)
    return np.fft.irfft(np.fft.rfft(samples) * ((frequencies > low) & (frequencies < high)), samples.size)


def level(samples):
    """dB of the mean square."""
    return 10 * np.log10(np.mean(np.square(samples)) + 1e-20)


@pytest.mark.parametrize(("given", "expected"), [(1.0, 1.0), (0.5, 0.5), (0.16, 0.16), (2.0, 1.0), (0.04, 0.0), (0, 0)])
def test_the_gain_is_that_of_the_model_but_for_boost_and_traces(given, expected):
    x = noise(10_000)[None]
    gains = TopBandGain(1).feed(x, np.float32(given) * x, last=True)
    np.testing.assert_allclose(gains, expected, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 511, 512, 513, 7001])
def test_a_gain_for_each_frame_however_the_blocks_are_cut(length):
    x = np.stack([noise(length, seed) for seed in range(2)])
    y = x * np.linspace(0, 1, length, dtype=np.float32)
    whole = TopBandGain(2).feed(x, y, last=True)
    assert whole.shape == (2, -(-length // HOP) + 1)
    estimator = TopBandGain(2)
    parts = [estimator.feed(x[:, i : i + 100], y[:, i : i + 100]) for i in range(0, length, 100)]
    parts.append(estimator.feed(x[:, :0], y[:, :0], last=True))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-6)


def test_the_gain_is_known_two_hops_behind_the_centre_of_its_frame():
    estimator, x = TopBandGain(1), noise(10 * HOP)[None]
    assert estimator.feed(x[:, : 2 * HOP - 1], x[:, : 2 * HOP - 1]).shape == (1, 0)
    assert estimator.feed(x[:, 2 * HOP - 1 : 2 * HOP], x[:, 2 * HOP - 1 : 2 * HOP]).shape == (1, 1)


def test_digital_silence_has_no_gain_and_no_warning():
    silence = np.zeros((1, 2000), np.float32)
    assert not TopBandGain(1).feed(silence, silence, last=True).any()


def test_the_gain_follows_the_top_of_the_band_alone():
    low = voice(16_000)[None]
    x = band(low[0], 16_000, 0, 3000)[None].astype(np.float32) + noise(16_000)[None]
    top = band(x[0], 16_000, 3900, 7100)[None].astype(np.float32)
    gains = TopBandGain(1).feed(x, top, last=True)  # all below 4 kHz taken away
    assert gains[:, 2:-2].min() > 0.9


def test_seams_have_no_step():
    """A model that goes from 0 to 1 between two samples: the gain rises in a line over 3 frames at the least."""
    x, rate = noise(16_000)[None], 48_000
    y = np.where(np.arange(16_000) < 8000, np.float32(0), x)
    upper = UpperBand(1, rate)
    upper.hear(x)
    upper.lower(y, last=True)
    gains = upper.upper(np.ones((1, rate), np.float32))[0]
    assert (gains[: rate // 2 - 2500] == 0).all()
    np.testing.assert_allclose(gains[rate // 2 + 2500 :], 1, atol=1e-6)
    assert np.abs(np.diff(gains)).max() < 1 / (HOP * 3)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_constant_mask_returns_the_input_at_every_rate(rate, gain):
    """The whole band, across seams, to the sample."""
    enhancer = Enhancer(Gain(gain), "cpu", span_seconds=0.3, context_seconds=0.1)
    for length in (0, 1, 1001, 2 * rate + 1):
        signal = np.stack([noise(length, seed) + voice(length, seed, rate) for seed in range(2)])
        enhanced = enhancer(signal, rate)
        assert enhanced.shape == signal.shape
        if length > rate:  # near the ends the band of a cut recording is not where it was
            np.testing.assert_allclose(enhanced[:, 500:-500], gain * signal[:, 500:-500], atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_blocks_of_any_length_and_a_limit_of_the_attenuation(tiny_model, rate):
    enhancer = Enhancer(tiny_model, "cpu", span_seconds=0.3, context_seconds=0.1)
    signal = noise(rate)[None]
    whole = enhancer(signal, rate, 12.0)
    blocks = (signal[:, i : i + 777] for i in range(0, rate, 777))
    streamed = np.concatenate(list(enhancer.stream(blocks, 1, rate, 12.0)), axis=1)
    np.testing.assert_allclose(streamed, whole, atol=1e-6)


def test_bandwidth_of_the_model_alone(tiny_model):
    whole, narrow = (Enhancer(tiny_model, "cpu", bandwidth=name) for name in ("full", "16k"))
    signal = noise(48_000)
    assert level(band(narrow(signal, 48_000), 48_000, 8500, 24_000)) < level(signal) - 60
    low = slice(500, -500)  # what lies in the model's band is the same
    both = [band(enhancer(signal, 48_000), 48_000, 0, 7000)[low] for enhancer in (whole, narrow)]
    np.testing.assert_allclose(*both, atol=1e-4)
    np.testing.assert_array_equal(whole(signal, 16_000), narrow(signal, 16_000))
    np.testing.assert_array_equal(whole(signal, 8_000), narrow(signal, 8_000))
    with pytest.raises(ValueError, match="full or 16k"):
        Enhancer(tiny_model, "cpu", bandwidth="wide")


def test_hiss_dies_and_consonants_live():
    """The sample of 48 kHz, by the shipped weights: docs/full_band.md has the figures."""
    noisy, rate = soundfile.read(SAMPLES / "english-hiss.flac")
    clean = soundfile.read(SAMPLES / "clean" / "english-hiss.flac")[0]
    enhanced = Enhancer.from_pretrained(device="cpu", dtype="float32")(noisy, rate)
    frames = noisy.size // 960  # of 20 ms
    loud, *upper = (
        np.square(samples[: frames * 960]).reshape(frames, 960).mean(1)
        for samples in (clean, *(band(s, rate, 8200, 18_000) for s in (clean, noisy, enhanced)))
    )
    upper_clean, upper_noisy, upper_enhanced = upper
    pauses, sibilants = loud < 1e-6 * loud.max(), upper_clean > 0.1 * upper_clean.max()
    assert pauses.sum() > 20
    assert sibilants.sum() > 50
    assert upper_enhanced[pauses].mean() < 10**-2 * upper_noisy[pauses].mean()
    assert abs(10 * np.log10(upper_enhanced[sibilants].mean() / upper_clean[sibilants].mean())) < 1
    each = 10 * np.log10(upper_enhanced[sibilants] / upper_clean[sibilants])
    assert np.mean(np.abs(each) < 3) > 0.95
