"""Mixing, pairs and batches: aligned, reproducible, and refused where they do not belong together."""

import numpy as np
import pytest
import soundfile
from conftest import noise, voice

from fastenh.audio.files import AudioError
from fastenh.data.corpus import Corpus
from fastenh.data.feed import MixFeed, PairFeed, prefetch
from fastenh.data.mixing import Mixer, MixingConfig, active_rms
from fastenh.data.pairs import Pair, PairError, find_lag, load_pair, match_pairs
from fastenh.data.synthetic import synthetic_noise

RATE = 16_000
PLAIN = MixingConfig(
    speed=0, equaliser=0, reverberation=0, second_noise=0, babble=0, synthetic_noise=0,
    band_limit=0, clipping=0, noise_only=0,
)  # fmt: skip
ALL = MixingConfig(
    speed=1, equaliser=1, reverberation=1, second_noise=1, babble=0.4, synthetic_noise=0.3, band_limit=1, clipping=1,
    noise_only=0,
)  # fmt: skip


def corpus(recordings):
    return Corpus([np.round(r * 32767).astype(np.int16) for r in recordings], RATE)


@pytest.fixture
def speech():
    return corpus([voice(40_000 + 5000 * i, seed=i) for i in range(5)])


@pytest.fixture
def noises():
    return corpus([noise(30_000, seed=i) for i in range(3)])


@pytest.fixture
def rooms():
    decay = np.exp(-np.arange(4000) / 600) * np.random.default_rng(0).standard_normal(4000) * 0.2
    return corpus([np.concatenate([np.zeros(50), [0.9], decay])])


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


# --- mixing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PLAIN, ALL, MixingConfig()])
def test_a_pair_is_the_same_whenever_it_is_drawn(config, speech, noises, rooms):
    mixers = [Mixer(config, speech, noises, rooms, 16_000, seed=7) for _ in range(2)]
    for index in (0, 1, 123_456):
        for mine, theirs in zip(mixers[0].pair(index), mixers[1].pair(index), strict=True):
            assert mine.dtype == np.float32
            assert mine.shape == (16_000,)
            assert np.isfinite(mine).all()
            np.testing.assert_array_equal(mine, theirs)
    other = Mixer(config, speech, noises, rooms, 16_000, seed=8)
    assert not np.array_equal(other.pair(0)[0], mixers[0].pair(0)[0])


@pytest.mark.parametrize("snr", [-10.0, 0.0, 15.0])
def test_snr_is_on_the_active_level(snr, speech, noises):
    config = MixingConfig(**{**vars(PLAIN), "snr_db": (snr, snr), "level_db": (-20.0, -20.0)})
    mixer = Mixer(config, speech, noises, None, 32_000, seed=0)
    for index in range(5):
        noisy, clean = mixer.pair(index)
        ratio = active_rms(clean) / np.sqrt(np.mean((noisy - clean) ** 2))
        assert 20 * np.log10(ratio) == pytest.approx(snr, abs=0.1)
        assert 20 * np.log10(active_rms(clean)) == pytest.approx(-20, abs=0.1)


@pytest.mark.parametrize("config", [PLAIN, ALL])
def test_target_stays_aligned_with_the_speech(config, speech, noises, rooms):
    config = MixingConfig(**{**vars(config), "snr_db": (20.0, 20.0), "clipping": 0.0})
    mixer = Mixer(config, speech, noises, rooms, 32_000, seed=0)
    for index in range(8):
        noisy, clean = mixer.pair(index)
        size = 2 * noisy.size
        correlation = np.fft.irfft(np.fft.rfft(noisy, size) * np.conj(np.fft.rfft(clean, size)))
        assert correlation.argmax() == 0


def test_noise_alone_has_a_silent_target(speech, noises):
    mixer = Mixer(MixingConfig(noise_only=1.0), speech, noises, None, 16_000, seed=0)
    noisy, clean = mixer.pair(0)
    assert not clean.any()
    assert noisy.any()


def test_recordings_shorter_than_a_crop(noises):
    mixer = Mixer(PLAIN, corpus([voice(500)]), corpus([noise(100)]), None, 16_000, seed=0)
    noisy, clean = mixer.pair(0)
    assert noisy.shape == clean.shape == (16_000,)
    assert np.isfinite(noisy).all()


def test_synthetic_noise_is_finite_and_audible():
    for seed in range(100):
        for length in (1, 100, 8000):
            made = synthetic_noise(np.random.default_rng(seed), length, RATE)
            assert made.shape == (length,)
            assert np.isfinite(made).all()
        assert np.sqrt(np.mean(made**2)) == pytest.approx(1.0, abs=1e-3)


def test_corpus(tmp_path):
    write(tmp_path / "a" / "x.wav", voice(8000), 8000)
    write(tmp_path / "b" / "empty.wav", voice(0))
    soundfile.write(tmp_path / "b" / "nan.wav", np.array([0.5, np.nan, np.inf]), RATE, subtype="FLOAT")
    loaded = Corpus.load([tmp_path / "a", tmp_path / "b"], RATE)
    assert len(loaded) == 2
    np.testing.assert_array_equal(loaded[1], [0.5, 0.0, 0.0])
    (tmp_path / "b" / "nan.wav").unlink()
    assert loaded[0].shape == (16_000,)
    np.testing.assert_array_equal(loaded.crop(0, 15_990, 20)[10:], loaded[0][:10])
    with pytest.raises(AudioError, match="no audio files"):
        Corpus.load([tmp_path / "b"], RATE)
    rest, held_out = corpus([voice(10)] * 40).split(20)
    assert (len(rest), len(held_out)) == (38, 2)


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_layouts(tmp_path):
    for name in ("p226_001", "p226_002"):  # VoiceBank+DEMAND
        for side in ("noisy_trainset_wav", "clean_trainset_wav"):
            write(tmp_path / side / f"{name}.wav", voice(1000))
    names = [p.name for p in match_pairs(tmp_path / "noisy_trainset_wav", tmp_path / "clean_trainset_wav")]
    assert names == ["p226_001", "p226_002"]
    write(tmp_path / "train" / "train" / "a.flac", voice(1000))  # an archive's own top folder on one side
    write(tmp_path / "y_train" / "a.wav", voice(1000))
    (pair,) = match_pairs(tmp_path / "train", tmp_path / "y_train")
    assert (pair.noisy.name, pair.clean.name) == ("a.flac", "a.wav")
    write(tmp_path / "n" / "s1" / "x.wav", voice(100))  # the same name in two folders, matched by path
    write(tmp_path / "n" / "s2" / "x.wav", voice(200))
    write(tmp_path / "c" / "s1" / "x.wav", voice(100))
    write(tmp_path / "c" / "s2" / "x.wav", voice(200))
    assert [p.name for p in match_pairs(tmp_path / "n", tmp_path / "c")] == ["s1/x", "s2/x"]


def test_missing_partner_and_lengths_name_the_files(tmp_path):
    write(tmp_path / "n" / "a.wav", voice(1000))
    write(tmp_path / "c" / "b.wav", voice(1000))
    with pytest.raises(PairError, match=r"a\.wav: no partner"):
        match_pairs(tmp_path / "n", tmp_path / "c")
    write(tmp_path / "c2" / "a.wav", voice(900))
    with pytest.raises(PairError, match=r"a\.wav has 1000 frames and .*a\.wav 900"):
        match_pairs(tmp_path / "n", tmp_path / "c2")
    with pytest.raises(PairError, match="no such file"):
        match_pairs(tmp_path / "n", tmp_path / "nowhere")
    write(tmp_path / "n" / "deep" / "a.wav", voice(1000))
    write(tmp_path / "c" / "a.wav", voice(1000))
    with pytest.raises(PairError, match="same name twice"):
        match_pairs(tmp_path / "n", tmp_path / "c")


def test_sides_of_different_rates_are_a_pair(tmp_path):
    write(tmp_path / "n.wav", voice(32_000, rate=32_000), 32_000)
    write(tmp_path / "c.wav", voice(16_000), 16_000)
    (pair,) = match_pairs(tmp_path / "n.wav", tmp_path / "c.wav")
    noisy, clean, _ = load_pair(pair, RATE)
    assert noisy.shape == clean.shape == (16_000,)


@pytest.mark.parametrize("lag", [-3, 1, 5, 100])
@pytest.mark.parametrize("scale", [0.005, 0.1])
def test_a_small_shift_is_a_warning(tmp_path, lag, scale):
    clean = voice(40_000) + noise(40_000, seed=5, scale=0.01)
    noisy = np.roll(clean, lag) + noise(40_000, scale=scale)
    pair = Pair("a", write(tmp_path / "n.wav", noisy), write(tmp_path / "c.wav", clean))
    warnings = load_pair(pair, RATE)[2]
    assert f"{lag} samples apart" in warnings[0]


def test_a_large_shift_is_refused(tmp_path):
    clean = voice(40_000) + noise(40_000, seed=5, scale=0.01)
    pair = Pair("a", write(tmp_path / "n.wav", np.roll(clean, 2000)), write(tmp_path / "c.wav", clean))
    with pytest.raises(PairError, match="2000 samples apart, the pair is misaligned"):
        load_pair(pair, RATE)


def test_no_false_alarm():
    for seed in range(10):
        clean = voice(40_000, seed) + noise(40_000, seed + 50, 0.002)
        for scale in (0.01, 0.1, 0.5):
            assert find_lag(clean + noise(40_000, seed, scale), clean, 8000) == 0
    assert find_lag(noise(1000), np.zeros(1000, np.float32), 100) == 0


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ramp_pairs(tmp_path):
    """Pairs whose samples say where they are: noisy = clean + 0.5, clean a ramp."""
    pairs = []
    for index, length in enumerate((5000, 7000, 300)):
        ramp = np.arange(length) / 32768.0
        noisy = write(tmp_path / "n" / f"{index}.wav", ramp + 0.5)
        pairs.append(Pair(str(index), noisy, write(tmp_path / "c" / f"{index}.wav", ramp)))
    return pairs


def test_crops_are_cut_at_one_start(ramp_pairs):
    feed = PairFeed(ramp_pairs, batch_size=2, length=1000, sample_rate=RATE, seed=0)
    assert feed.steps_per_epoch == 2
    starts = set()
    for step in range(20):
        noisy, clean = feed.batch(step)
        assert noisy.shape == clean.shape == (2 if step % 2 == 0 else 1, 1000)
        inside = noisy != 0
        np.testing.assert_allclose((noisy - clean)[inside], 0.5, atol=1e-4)
        starts |= {round(float(row[0]) * 32768) for row in clean}
    assert len(starts) > 10


def test_an_epoch_shows_each_pair_once(ramp_pairs):
    feed = PairFeed(ramp_pairs, batch_size=1, length=10_000, sample_rate=RATE, seed=3)
    lengths = [int((feed.batch(step)[0] != 0).sum()) for step in range(6)]
    assert sorted(lengths[:3]) == sorted(lengths[3:]) == [300, 5000, 7000]


def test_prefetching_keeps_the_order_and_passes_errors_on(speech, noises):
    feed = MixFeed(Mixer(PLAIN, speech, noises, None, 8000, seed=0), batch_size=2, steps_per_epoch=5)
    ahead = prefetch(feed, 3)
    for step in range(3, 8):
        np.testing.assert_array_equal(next(ahead)[0], feed.batch(step)[0])
    ahead.close()

    class Broken:
        steps_per_epoch = 1

        def batch(self, step):
            raise PairError("a.wav is gone")

    with pytest.raises(PairError, match="gone"):
        next(prefetch(Broken(), 0))
