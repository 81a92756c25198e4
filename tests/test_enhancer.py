"""The Python interface: shapes, spans around a model, level, odd input."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.allocator import expect_large_blocks
from fastenh.devices import pick_device
from fastenh.enhance.enhancer import EnhancementError


class Gain(nn.Module):
    """A model that multiplies."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain

    def forward(self, waveform):
        return waveform * self.gain


def short_spans(model, **options):
    return Enhancer(model, "cpu", span_seconds=0.25, context_seconds=0.1, **options)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("length", [0, 1, 2, 255, 5000, 20_001])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_shape_in_shape_out(tiny_model, rate, length, channels):
    shape = (length,) if channels is None else (channels, length)
    signal = np.resize(voice(max(length, 1)), shape).astype(np.float32)
    enhanced = short_spans(tiny_model)(signal, rate)
    assert enhanced.shape == shape
    assert np.isfinite(enhanced).all()


def test_torch_in_torch_out(tiny_model):
    signal = torch.from_numpy(voice(3000)).double()
    enhanced = short_spans(tiny_model)(signal, 16_000)
    assert enhanced.dtype == torch.float64
    assert enhanced.shape == signal.shape


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.int32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_comes_back_and_says_what_full_scale_is(dtype):
    signal = torch.from_numpy(voice(9000) + noise(9000))
    scale = 1.0 if dtype.is_floating_point else float(torch.iinfo(dtype).max) + 1
    given = (signal * scale).to(dtype)
    enhanced = short_spans(Gain(0.5))(given, 16_000)
    assert enhanced.dtype == dtype
    torch.testing.assert_close(enhanced.double() / scale, 0.5 * given.double() / scale, atol=1e-4, rtol=1e-2)
    if dtype != torch.bfloat16:
        again = short_spans(Gain(0.5))(given.numpy(), 16_000)
        assert again.dtype == given.numpy().dtype
        np.testing.assert_array_equal(again, enhanced.numpy())


def test_integers_are_clipped_and_do_not_wrap():
    loud = np.array([32767, -32768, 20_000, -20_000, 1, -1] * 1000, np.int16)
    enhanced = short_spans(Gain(2.0))(loud, 16_000)
    np.testing.assert_array_equal(enhanced[:6], [32767, -32768, 32767, -32768, 2, -2])


def test_a_block_of_one_dimension_is_one_channel(tiny_model):
    enhancer = short_spans(tiny_model)
    signal = voice(9000)
    whole = enhancer(signal, 16_000)
    blocks = list(enhancer.stream([signal[:5000], signal[5000:]], channels=1))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[0], whole)
    samples = (signal * 32767).astype(np.int16)
    streamed = np.concatenate(list(enhancer.stream([samples], channels=1)), axis=1)[0]
    np.testing.assert_allclose(streamed, enhancer(samples / np.float32(32768), 16_000), atol=1e-6)


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch):
    there = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    for name in ("cuda", "mps", "cpu"):
        assert pick_device("auto") == torch.device(name)
        there[name] = False


def test_a_constant_mask_returns_the_input_across_the_seams():
    for length in (10_000, 15_999, 16_000, 50_001):
        signal = voice(length)
        enhanced = short_spans(Gain(0.5))(signal, 16_000)
        np.testing.assert_allclose(enhanced, 0.5 * signal, atol=1e-6)


def test_what_fits_one_window_is_the_plain_model_call(tiny_model):
    enhancer = short_spans(tiny_model, dtype="float32")
    for length in (1, 1000, enhancer.spans.window):
        signal = voice(length)
        with torch.inference_mode():
            plain = tiny_model(torch.from_numpy(signal)[None])[0].numpy()
        np.testing.assert_array_equal(enhancer(signal, 16_000), plain)


def test_batch_size_changes_nothing(tiny_model):
    signal = np.stack([voice(30_000, seed) + noise(30_000, seed) for seed in range(2)])
    one = short_spans(tiny_model, batch_size=1)(signal, 16_000)
    for batch_size in (2, 5, 100):
        np.testing.assert_allclose(short_spans(tiny_model, batch_size=batch_size)(signal, 16_000), one, atol=1e-6)


def test_channels_do_not_meet(tiny_model):
    signal = np.stack([voice(12_000, seed) for seed in range(2)])
    both = short_spans(tiny_model)(signal, 16_000)
    for channel in range(2):
        np.testing.assert_allclose(short_spans(tiny_model)(signal[channel], 16_000), both[channel], atol=1e-6)


@pytest.mark.parametrize("block", [100, 4096, 33_333])
def test_streaming_equals_in_memory(tiny_model, block):
    enhancer = short_spans(tiny_model)
    signal = (voice(40_000) + noise(40_000))[None]
    blocks = [signal[:, i : i + block] for i in range(0, signal.shape[1], block)]
    streamed = np.concatenate(list(enhancer.stream(blocks, channels=1)), axis=1)
    np.testing.assert_array_equal(streamed, enhancer(signal, 16_000))


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
@pytest.mark.parametrize("limit", [None, 12.0])
def test_streaming_at_any_rate_equals_in_memory(tiny_model, rate, limit):
    enhancer = short_spans(tiny_model)
    for length in (1, 7001, 2 * rate + 1):
        signal = np.stack([voice(length, seed, rate) for seed in range(2)])
        whole = enhancer(signal, rate, limit)
        blocks = (signal[:, i : i + 5000] for i in range(0, length, 5000))
        streamed = np.concatenate(list(enhancer.stream(blocks, 2, rate, limit)), axis=1)
        assert streamed.shape == whole.shape == signal.shape
        np.testing.assert_allclose(streamed, whole, atol=1e-6)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    """Peak memory of a job over half an hour is that of one over two minutes (50 MB of slack)."""
    peaks = []
    for minutes in (2, 30):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 16_000, 1) as file:
            for _ in range(minutes):
                file.write(voice(960_000) + noise(960_000))
        command = [sys.executable, "-c", PEAK, str(Path(__file__).parent), str(path), str(tmp_path / "out.wav")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        assert soundfile.info(tmp_path / "out.wav").frames == minutes * 960_000
        (tmp_path / "out.wav").unlink()
    assert peaks[1] < peaks[0] + 50_000


PEAK = """
import resource, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import TINY_DPT
from fastenh import Enhancer
from fastenh.enhance import job, layout
from fastenh.models.registry import build
results = list(job.run([layout.Task(*map(Path, sys.argv[2:]))], Enhancer(build("dpt", TINY_DPT).eval(), "cpu")))
assert results[0].status == "enhanced", results
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_silence_and_constant_input(tiny_model):
    enhancer = short_spans(tiny_model)
    assert not enhancer(np.zeros(20_000, np.float32), 16_000).any()
    assert np.isfinite(enhancer(np.ones(20_000, np.float32), 16_000)).all()
    half = np.concatenate([np.zeros(20_000, np.float32), voice(20_000)])
    assert not enhancer(half, 16_000)[:10_000].any()


def test_nan_and_infinity_count_as_silence(tiny_model):
    signal = voice(20_000)
    spoilt, silent = signal.copy(), signal.copy()
    spoilt[5000:5100], spoilt[7000], silent[5000:5100], silent[7000] = np.nan, np.inf, 0, 0
    enhancer = short_spans(tiny_model)
    np.testing.assert_array_equal(enhancer(spoilt, 16_000), enhancer(silent, 16_000))


@pytest.mark.parametrize("db", [0.0, 6.0, 20.0])
def test_attenuation_limit(db):
    signal = voice(20_000)
    muted = short_spans(Gain(0.0))(signal, 16_000, atten_lim_db=db)
    np.testing.assert_allclose(muted, signal * 10 ** (-db / 20), atol=1e-6)


def test_level_scales_through(tiny_model):
    signal = voice(30_000) + noise(30_000)
    enhancer = short_spans(tiny_model, dtype="float32")
    np.testing.assert_allclose(enhancer(signal * 0.03, 16_000) / 0.03, enhancer(signal, 16_000), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes(tiny_model, dtype):
    signal = voice(8000)
    full = Enhancer(tiny_model, "cpu", "float32")(signal, 16_000)
    error = np.linalg.norm(Enhancer(tiny_model, "cpu", dtype)(signal, 16_000) - full) / np.linalg.norm(full)
    assert error < 2e-2


def test_wrong_input(tiny_model):
    enhancer = short_spans(tiny_model)
    with pytest.raises(ValueError, match=r"\(channels, samples\)"):
        enhancer(np.zeros((2, 2, 2), np.float32), 16_000)
    for transposed in (np.zeros((16_000, 2), np.float32), torch.zeros(16_000, 1)):
        with pytest.raises(ValueError, match="transpose"):
            enhancer(transposed, 16_000)
    for rate in (0, -16_000, 1, 16, 1e9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sample_rate"):
            enhancer(np.zeros(10, np.float32), rate)
    with pytest.raises(ValueError, match="atten_lim_db"):
        enhancer(np.zeros(10, np.float32), 16_000, float("nan"))
    kinds = (np.zeros(9, complex), torch.zeros(9, dtype=torch.cfloat), np.zeros(9, np.uint8), np.zeros(9, bool))
    for samples in kinds:
        with pytest.raises(ValueError, match="samples are floating point"):
            enhancer(samples, 16_000)
    with pytest.raises(ValueError, match=r"2 channels, not \(500, 2\): transpose"):
        list(enhancer.stream([np.zeros((500, 2), np.float32)], channels=2))
    with pytest.raises(ValueError, match=r"2 channels, not \(500,\)"):
        list(enhancer.stream([np.zeros(500, np.float32)], channels=2))
    with pytest.raises(ValueError, match="dtype must be"):
        Enhancer(tiny_model, "cpu", "int8")
    with pytest.raises(ValueError, match="cannot be used"):
        Enhancer(tiny_model, "cuda:99")


def test_a_model_that_gives_nan_is_noticed():
    with pytest.raises(EnhancementError, match="NaN"):
        short_spans(Gain(float("nan")))(voice(1000), 16_000)


def test_memory_layout_does_not_matter(tiny_model):
    """soundfile's (frames, channels), turned round, is not contiguous; nor is every second sample."""
    frames_first = np.stack([voice(9000, seed) for seed in range(2)], axis=1)
    enhancer = short_spans(tiny_model)
    for rate in (16_000, 44_100):
        plain = enhancer(np.ascontiguousarray(frames_first.T), rate)
        np.testing.assert_array_equal(enhancer(frames_first.T, rate), plain)
        np.testing.assert_array_equal(enhancer(np.repeat(frames_first.T, 2, axis=1)[:, ::2], rate), plain)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")
def test_what_windows_free_stays_with_the_process():
    """Where glibc handed it back, each of these would fault 732 pages in."""
    resource = pytest.importorskip("resource")
    expect_large_blocks()
    torch.ones(750_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        torch.ones(750_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 50 * 732
