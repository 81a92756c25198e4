"""Sound while it is made: equal to the whole recording, blind to the future, as long, and as late as is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SAMPLES, noise, voice
from live_models import causal_model

from fastenh import Enhancer
from fastenh.audio.files import read_mono
from fastenh.audio.listing import list_audio
from fastenh.audio.resampling import ShortResampler, resample
from fastenh.enhance.chain import EnhancementError
from fastenh.enhance.live import LiveEnhancer
from fastenh.enhance.running_offset import RunningOffset
from fastenh.evaluate import metrics
from fastenh.models.live import HOP, LiveModelError
from fastenh.models.registry import build

RATES = [8_000, 16_000, 44_100, 48_000]


@pytest.fixture(scope="module")
def enhancer():
    return Enhancer(causal_model(), "cpu")


def sound(length: int, channels: int = 1, rate: int = 16_000) -> np.ndarray:
    return np.stack([voice(length, seed, rate) + noise(length, seed) for seed in range(channels)])


def cut(signal: np.ndarray, seed: int, largest: int = 3000) -> list[np.ndarray]:
    """In blocks of random sizes, some of them empty."""
    rng, blocks, begin = np.random.default_rng(seed), [], 0
    while begin < signal.shape[1]:
        size = int(rng.choice([0, 1, rng.integers(1, 300), rng.integers(1, largest)]))
        blocks.append(signal[:, begin : begin + size])
        begin += size
    return blocks


def through(live: LiveEnhancer, blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*(live.feed(block) for block in blocks), live.finish()], axis=1)


def whole(enhancer: Enhancer, signal: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return enhancer.model(torch.from_numpy(signal)).numpy()


@pytest.mark.parametrize(("length", "channels"), [(0, 1), (1, 1), (255, 1), (256, 1), (257, 2), (40_001, 1)])
def test_any_blocks_are_the_whole_pass(enhancer, length, channels):
    signal = sound(max(length, 1), channels)[:, :length]
    expected = whole(enhancer, signal) if length else signal
    for seed in range(4):
        made = through(enhancer.live(16_000, channels), cut(signal, seed))
        assert made.shape == signal.shape
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("length", [0, 1, 30_001])
def test_as_many_samples_as_went_in_the_same_for_any_blocks(enhancer, rate, length):
    signal = sound(max(length, 1), 2, rate)[:, :length]
    first, second = (through(enhancer.live(rate, 2), cut(signal, seed)) for seed in (1, 2))
    assert first.shape == signal.shape
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)


def test_channels_do_not_hear_each_other(enhancer):
    signal = sound(20_000, 2, 48_000)
    both = through(enhancer.live(48_000, 2), [signal])
    for channel, alone in zip(signal, both, strict=True):
        np.testing.assert_allclose(through(enhancer.live(48_000), [channel])[0], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("bandwidth", ["full", "16k"])
def test_the_future_changes_nothing_and_comes_no_later_than_said(rate, bandwidth):
    enhancer = Enhancer(causal_model(), "cpu", bandwidth=bandwidth)
    signal = sound(rate, 1, rate)
    for known in range(rate // 2, rate // 2 + 2000, 667):
        futures = []
        for seed in (1, 2):
            live = enhancer.live(rate)
            before = live.feed(signal[:, :known])
            assert known - before.shape[1] <= live.delay
            after = live.feed(3 * noise(rate // 4, seed, 0.3)[None])
            futures.append(np.concatenate([before, after], axis=1))
        assert np.array_equal(futures[0][:, : known - live.delay], futures[1][:, : known - live.delay])
        assert not np.allclose(futures[0][:, known : known + 2000], futures[1][:, known : known + 2000])


@pytest.mark.parametrize(
    ("rate", "bandwidth", "milliseconds"),
    [(16_000, "full", 31.9), (48_000, "16k", 35.1), (48_000, "full", 67.1), (44_100, "full", 67.1)],
)
def test_the_delay_in_milliseconds(rate, bandwidth, milliseconds):
    """What docs/live.md says; and it is reached, sooner or later, with a sample at a time."""
    live = Enhancer(causal_model(), "cpu", bandwidth=bandwidth).live(rate)
    assert 1000 * live.delay / rate == pytest.approx(milliseconds, abs=0.06)
    assert not live.feed(np.zeros(rate // 2, np.float32))[:, rate // 2 :].size
    fed, given, largest = 0, 0, 0
    live.reset()
    for _ in range(7 * HOP * rate // 16_000 // 8):
        fed, given = fed + 8, given + live.feed(np.zeros(8, np.float32)).shape[1]
        largest = max(largest, fed - given)
    assert live.delay - 16 <= largest <= live.delay


def test_reset_and_copy(enhancer):
    signal = sound(30_000, 1, 48_000)
    live = enhancer.live(48_000)
    begun = live.feed(signal[:, :10_001])
    other = live.copy()
    other.feed(noise(5000)[None])
    third = other.copy()
    rest = [live.feed(signal[:, 10_001:]), live.finish()]
    live.reset()
    np.testing.assert_array_equal(through(live, [signal]).shape, signal.shape)
    live.reset()
    again = [live.feed(signal[:, :10_001]), live.feed(signal[:, 10_001:]), live.finish()]
    np.testing.assert_array_equal(np.concatenate(again, axis=1), np.concatenate([begun, *rest], axis=1))
    assert third.finish().shape[1] > 0
    with pytest.raises(ValueError, match="has ended"):
        live.feed(signal)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_attenuation_limit_and_bypass(enhancer, rate):
    signal = sound(rate, 1, rate)
    plain = through(enhancer.live(rate), [signal])
    limited = through(enhancer.live(rate, 1, 6.0), cut(signal, 1))
    share = 10 ** (-6 / 20)
    np.testing.assert_allclose(limited, share * signal + (1 - share) * plain, atol=1e-5)
    live = enhancer.live(rate)
    live.share = 1.0
    first = live.feed(signal[:, : rate // 2])
    second = np.concatenate([live.feed(signal[:, rate // 2 :]), live.finish()], axis=1)
    np.testing.assert_allclose(second, signal[:, first.shape[1] :], atol=1e-6)


def test_the_upper_band_follows_the_gain_as_in_files(enhancer):
    """Beside the windows' chain, whose resampler is another one: what the two make of a hiss above 8 kHz."""
    rate, signal = 48_000, sound(96_000, 1, 48_000)
    made = through(enhancer.live(rate), [signal])
    model, windows = enhancer.model, Enhancer(enhancer.model, "cpu", live=False, span_seconds=8)
    assert windows.live_model is None
    assert model is windows.model
    expected = windows(signal, rate)

    def above(x):
        spectrum = np.fft.rfft(x[0, 4000:-4000] * np.hanning(x.shape[1] - 8000))
        return spectrum[int(9000 * len(spectrum) / 24_000) :]

    assert np.abs(above(made)).mean() > 0.02 * np.abs(above(signal)).mean()
    error = np.linalg.norm(above(made) - above(expected)) / np.linalg.norm(above(expected))
    assert error < 0.06  # the filters differ around 8 kHz


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_the_gate_for_pauses_adds_no_delay_and_does_not_depend_on_blocks(enhancer, rate):
    gated = Enhancer(causal_model(), "cpu", vad=True)
    signal = sound(2 * rate, 1, rate)
    signal[:, rate:] *= 1e-3  # a pause
    assert gated.live(rate).delay == enhancer.live(rate).delay
    plain = through(enhancer.live(rate), [signal])
    first, second = (through(gated.live(rate), cut(signal, seed)) for seed in (1, 2))
    assert first.shape == signal.shape
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)
    quiet = slice(3 * rate // 2, None)  # what the gate holds open and closes over has passed
    assert np.square(first[:, quiet]).sum() < 0.02 * np.square(plain[:, quiet]).sum()
    np.testing.assert_allclose(first[:, rate // 2 : rate], plain[:, rate // 2 : rate], rtol=0, atol=1e-6)


def test_files_and_waveforms_run_as_a_stream(enhancer):
    signal = sound(30_000)
    assert enhancer.live_model is not None
    np.testing.assert_allclose(enhancer(signal, 16_000), whole(enhancer, signal), rtol=0, atol=1e-5)


def test_integers_and_what_is_no_sound(enhancer):
    signal = (20_000 * sound(5000)).astype(np.int16)
    scaled = signal.astype(np.float32) / 32768
    np.testing.assert_array_equal(through(enhancer.live(16_000), [signal]), through(enhancer.live(16_000), [scaled]))
    broken = scaled.copy()
    broken[:, 100] = np.nan
    assert np.isfinite(through(enhancer.live(16_000), [broken])).all()


def test_what_is_refused(tiny_model, enhancer):
    with pytest.raises(LiveModelError, match="dpt_complex-live can"):
        Enhancer(tiny_model, "cpu", live=True)
    with pytest.raises(LiveModelError, match="dpt_complex-live can"):
        Enhancer(tiny_model, "cpu").live(16_000)
    with pytest.raises(LiveModelError):
        Enhancer(build("dpt_complex").eval(), "cpu", live=True)
    for rate in (7_999, 16_000.5, 200_000):
        with pytest.raises(ValueError, match="whole number"):
            enhancer.live(rate)
    with pytest.raises(ValueError, match="of 2 channels"):
        enhancer.live(16_000, 2).feed(np.zeros((1, 10), np.float32))
    with pytest.raises(ValueError, match="not a number"):
        enhancer.live(16_000, 1, float("nan"))


def test_damaged_weights_are_an_error():
    model = causal_model()
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(EnhancementError, match="NaN"):
        through(Enhancer(model, "cpu").live(16_000), [sound(1000)])


@pytest.mark.parametrize("rates", [(48_000, 16_000), (16_000, 48_000), (44_100, 16_000), (16_000, 8_000)])
def test_the_short_resampler_is_soxr_in_the_band_they_share(rates):
    rate, new_rate = rates
    time = np.arange(rate) / rate
    signal = sum(np.sin(2 * np.pi * f * time + f) for f in (50, 700, 0.4 * min(rates)))[None].astype(np.float32)
    resampler = ShortResampler(rate, new_rate, 1)
    made = np.concatenate([*(resampler.feed(b) for b in cut(signal, 1)), resampler.feed(signal[:, :0], True)], axis=1)
    expected = resample(signal, rate, new_rate)
    assert abs(made.shape[1] - expected.shape[1]) <= 1
    inside = slice(1000, expected.shape[1] - 1000)
    np.testing.assert_allclose(made[:, inside], expected[:, inside], atol=1e-3)


def test_the_short_resampler_keeps_aliases_out():
    high = np.sin(2 * np.pi * 9_000 * np.arange(48_000) / 48_000)[None].astype(np.float32)
    made = ShortResampler(48_000, 16_000, 1).feed(high)
    assert np.abs(made[:, 100:]).max() < 2e-4  # 75 dB


def test_a_running_offset_is_found_and_sound_without_one_is_left_alone():
    signal = sound(80_000, 2)
    shifted = signal + np.array([[0.1], [0.0]], np.float32)
    finder = RunningOffset(2, 16_000)
    made = np.concatenate([finder.feed(block) for block in cut(shifted, 1)], axis=1)
    np.testing.assert_array_equal(made[1], signal[1])
    assert np.abs(made[0, :15_000].mean() - 0.1) < 0.01  # of the first second nothing is known yet
    assert np.abs(made[0, 20_000:].mean()) < 0.005
    assert finder.remarks() == [f"a DC offset of {finder.largest:.2g} of full scale was removed"]
    again = RunningOffset(2, 16_000)
    np.testing.assert_allclose(again.feed(shifted), made, atol=1e-7)
    assert RunningOffset(2, 16_000).feed(signal) is not signal


def test_a_running_offset_leaves_digital_silence_alone():
    shifted = sound(40_000) + np.float32(0.1)
    finder = RunningOffset(1, 16_000)
    finder.feed(shifted)
    silent = finder.feed(np.zeros((1, 8000), np.float32))
    assert not silent[:, 400:].any()
    assert finder.feed(shifted)[:, 200:].mean() < 0.02


@pytest.mark.parametrize("path", list_audio(SAMPLES), ids=lambda path: path.stem)
def test_every_sample_gains_by_the_shipped_live_model(path):
    noisy, clean = read_mono(path, 16_000), read_mono(SAMPLES / "clean" / path.name, 16_000)
    live = Enhancer.from_pretrained("dpt_complex-live", "cpu", live=True).live(16_000)
    enhanced = through(live, [noisy[None]])[0]
    assert metrics.si_sdr(enhanced, clean) > metrics.si_sdr(noisy, clean) + 1.0
