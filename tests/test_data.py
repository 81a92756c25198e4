"""Mixing, pairs and batches: aligned, reproducible, and refused where they do not belong together."""

import json
from contextlib import closing

import numpy as np
import pytest
import scipy.stats
import soundfile
import torch
from conftest import noise, voice
from safetensors.torch import save_file

from fastenh.audio.files import AudioError
from fastenh.data.corpus import Corpus
from fastenh.data.degradations import codec, respeed
from fastenh.data.draws import Draws
from fastenh.data.feed import MixFeed, PairFeed, Share, mixed_ahead, prefetch
from fastenh.data.filters import active_rms, convolve
from fastenh.data.mixing import Mixer, MixingConfig
from fastenh.data.pairs import Pair, PairError, find_lag, load_pair, match_pairs
from fastenh.data.synthetic import synthetic_noise

RATE = 16_000
PLAIN = MixingConfig(
    speed=0, equaliser=0, reverberation=0, second_noise=0, babble=0, synthetic_noise=0,
    band_limit=0, clipping=0, codec=0, noise_only=0,
)  # fmt: skip
ALL = MixingConfig(
    speed=1, equaliser=1, reverberation=1, second_noise=1, babble=0.4, synthetic_noise=0.3, band_limit=1, clipping=1,
    codec=1, noise_only=0,
)  # fmt: skip


def corpus(recordings):
    return Corpus.of([np.round(r * 32767).astype(np.int16) for r in recordings], RATE)


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


def tone(hertz, length=RATE):
    return 0.3 * np.sin(2 * np.pi * hertz / RATE * np.arange(length))


def white(length=40_000, seed=0):
    return noise(length, seed, scale=0.1)


def mix(speech, noises, rooms=None, length=16_000, pairs=8, **settings):
    """Pairs in which nothing happens but what ``settings`` say."""
    return Mixer(MixingConfig(**{**vars(PLAIN), **settings}), speech, noises, rooms, length, seed=0).pairs(range(pairs))


def power(x, low, high):
    """(B,): mean power of the bins between two frequencies."""
    spectrum = torch.fft.rfft(x).abs().square()
    size = x.shape[-1]
    return spectrum[:, round(low * size / RATE) : round(high * size / RATE) + 1].mean(1)


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


# --- draws ---------------------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_number_alone():
    def plan(examples, seed=3):
        draws = Draws.of(seed, examples, torch.device("cpu"))
        odd = torch.tensor([e % 2 == 1 for e in examples])
        changed = draws.on_rows(odd, lambda draws, x: x + draws.normal(5), torch.zeros(len(examples), 5))
        return torch.cat([draws.uniform(0, 1, 200), changed, draws.normal(7), draws.uniform(2, 3, 4)], 1)

    whole = plan(range(100, 108))
    for cut in ([100], [107], [103, 101], range(104, 106)):
        np.testing.assert_array_equal(plan(cut), whole[[e - 100 for e in cut]])
    assert not torch.isclose(plan([101]), plan([101], seed=4)).any()
    assert len(set(whole.flatten().tolist())) == whole.numel() - 4 * 5 + 1  # the zeros of the even rows


def test_draws_have_their_distributions():
    draws = Draws.of(0, range(200), torch.device("cpu"))
    for given, exact in (
        (draws.uniform(0, 1, 500), scipy.stats.uniform.cdf),
        (draws.normal(501), scipy.stats.norm.cdf),
    ):
        assert scipy.stats.kstest(given.flatten().numpy(), exact).pvalue > 1e-3
        rows = np.corrcoef(given.numpy())
        assert np.abs(rows - np.eye(200)).max() < 5 / np.sqrt(500)
    counts = torch.bincount(draws.integers(2, 6, 100).flatten())
    assert counts[:2].sum() == 0
    assert (counts[2:].float() / 20_000 - 0.25).abs().max() < 0.02


# --- mixing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PLAIN, ALL, MixingConfig()])
def test_a_pair_is_the_same_in_whatever_batch_it_is_drawn(config, speech, noises, rooms):
    mixers = [Mixer(config, speech, noises, rooms, 16_000, seed=7) for _ in range(2)]
    for alone in (0, 1, 6):
        for mine, theirs in zip(mixers[0].pairs(range(7)), mixers[1].pairs([alone]), strict=True):
            assert mine.dtype == torch.float32
            assert mine.shape == (7, 16_000)
            assert torch.isfinite(mine).all()
            if config.codec:  # rounds to steps: a value on the edge of one falls either way
                assert (mine[alone] - theirs[0]).norm() < 1e-3 * theirs[0].norm()
            else:
                torch.testing.assert_close(mine[alone], theirs[0], rtol=0, atol=2e-6)
    other = Mixer(config, speech, noises, rooms, 16_000, seed=8)
    assert not torch.equal(other.pairs([0])[0], mixers[0].pairs([0])[0])


@pytest.mark.parametrize("snr", [-10.0, 0.0, 15.0])
def test_snr_is_on_the_active_level(snr, speech, noises):
    config = MixingConfig(**{**vars(PLAIN), "snr_db": (snr, snr), "level_db": (-20.0, -20.0)})
    noisy, clean = Mixer(config, speech, noises, None, 32_000, seed=0).pairs(range(5))
    ratio = active_rms(clean) / (noisy - clean).square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(20 * torch.log10(ratio), torch.full_like(ratio, snr), rtol=0, atol=0.1)
    torch.testing.assert_close(20 * torch.log10(active_rms(clean)), torch.full_like(ratio, -20), rtol=0, atol=0.1)


@pytest.mark.parametrize("config", [PLAIN, ALL])
def test_target_stays_aligned_with_the_speech(config, speech, noises, rooms):
    config = MixingConfig(**{**vars(config), "snr_db": (20.0, 20.0), "clipping": 0.0})
    for noisy, clean in zip(*Mixer(config, speech, noises, rooms, 32_000, seed=0).pairs(range(8)), strict=True):
        size = 2 * noisy.numel()
        correlation = torch.fft.irfft(torch.fft.rfft(noisy, size) * torch.fft.rfft(clean, size).conj())
        assert correlation.argmax() == 0


def test_crops_hold_speech_for_half_of_their_time(noises):
    """Of a recording whose second half is silent: four tries find such a crop 15 times of 16."""
    speech = corpus([np.concatenate([white(), np.zeros(40_000)])])
    _, clean = mix(speech, noises, length=8000, pairs=100)
    frames = clean.unfold(1, 320, 320).square().mean(2)
    active = (frames > 1e-3 * frames.amax(1, keepdim=True)).float().mean(1) > 0.45
    assert active.float().mean() > 0.85


def test_the_target_keeps_early_reflections_alone(noises):
    """Of echoes 45 and 55 ms behind the direct sound, which takes 30 ms itself, the first is in the target; seen in
    the correlation of white noise with itself."""
    response = np.zeros(4000)
    response[np.array([0, 720, 880]) + 480] = 0.9, 0.6, 0.5
    sides = mix(corpus([white()]), noises, corpus([response]), reverberation=1, snr_db=(100.0, 100.0))
    for side, late in zip(sides, (True, False), strict=True):
        likeness = [(side[:, lag:] * side[:, :-lag]).sum(1) / side.square().sum(1) for lag in (720, 880)]
        assert (likeness[0] > 0.3).all()
        assert ((likeness[1] > 0.2) == late).all()


def test_rooms_keep_the_level(noises, rooms):
    noisy, _ = mix(corpus([white()]), noises, rooms, reverberation=1, snr_db=(100, 100), level_db=(-20, -20))
    torch.testing.assert_close(20 * torch.log10(active_rms(noisy)), torch.full((8, 1), -20.0), rtol=0, atol=2)


def test_babble_is_of_several_voices(noises):
    """Each recording of speech is a tone of its own, so that the voices can be counted."""
    speech = corpus([tone(hertz) for hertz in range(200, 5200, 100)])
    noisy, clean = mix(speech, noises, babble=1, snr_db=(-20, -20))
    strength = torch.fft.rfft(noisy - clean).abs()
    voices = strength[:, 200:5200:100] > 0.1 * strength.amax(1, keepdim=True)
    counts = voices.sum(1)
    assert counts.max() <= 7
    assert counts.float().mean() > 3
    voices_alone = power(noisy - clean, 6000, 8000) < 1e-4 * power(noisy - clean, 0, 6000)
    assert voices_alone.all()


def test_long_noises_are_drawn_more_often_but_not_in_proportion():
    """By the root of their length: one of a hundredth has a share of 1 / 11."""
    noises = corpus([tone(1000, 400), tone(3000, 40_000)])
    noisy, clean = mix(corpus([white()]), noises, length=800, pairs=400, snr_db=(-30, -30))
    short = power(noisy - clean, 1000, 1000) > power(noisy - clean, 3000, 3000)
    assert short.float().mean().item() == pytest.approx(1 / 11, abs=0.04)


def test_the_band_limit_is_on_both_sides(noises):
    for side in mix(corpus([white()]), noises, band_limit=1, snr_db=(100, 100)):
        assert (power(side, 7800, 8000) < 1e-4 * power(side, 100, 2000)).all()


def test_clipping_and_codec_are_on_the_noisy_side(noises):
    for kind, clips in (("clipping", True), ("codec", False)):
        noisy, clean = mix(corpus([white()]), noises, snr_db=(100, 100), **{kind: 1})
        assert ((noisy - clean).norm(dim=1) > 1e-3 * clean.norm(dim=1)).all()
        for side, clipped in ((noisy, clips), (clean, False)):
            assert (((side.abs() == side.abs().amax(1, keepdim=True)).sum(1) > 1) == clipped).all()


def test_noise_alone_has_a_silent_target(speech, noises):
    noisy, clean = Mixer(MixingConfig(noise_only=1.0), speech, noises, None, 16_000, seed=0).pairs([0])
    assert not clean.any()
    assert noisy.any()
    noisy, clean = mix(corpus([tone(1000)]), corpus([tone(3000)]), noise_only=1)
    assert not clean.any()
    assert (power(noisy, 1000, 1000) < 1e-6 * power(noisy, 3000, 3000)).all()


def test_recordings_shorter_than_a_crop(noises):
    noisy, clean = Mixer(PLAIN, corpus([voice(500)]), corpus([noise(100)]), None, 16_000, seed=0).pairs([0])
    assert noisy.shape == clean.shape == (1, 16_000)
    assert torch.isfinite(noisy).all()
    torch.testing.assert_close(noisy[0, 1000:1100], noisy[0, 1100:1200])  # noise is repeated, speech is not


def test_a_plain_crop_is_a_piece_of_a_recording(speech, noises):
    config = MixingConfig(**{**vars(PLAIN), "snr_db": (100.0, 100.0)})
    for row in Mixer(config, speech, noises, None, 16_000, seed=0).pairs(range(4))[0].double().numpy():
        likeness = []
        for recording in map(speech.recording, range(5)):
            pieces = np.lib.stride_tricks.sliding_window_view(recording.astype(float), 16_000)
            size = len(recording) + len(row)
            spectrum = np.fft.rfft(recording, size) * np.fft.rfft(row, size).conj()
            best = pieces[np.abs(np.fft.irfft(spectrum, size)[: len(pieces)]).argmax()]
            likeness.append(best @ row / np.linalg.norm(best) / np.linalg.norm(row))
        assert max(likeness) > 0.9999


def test_respeed_is_the_tone_played_faster():
    time = torch.arange(16_000, dtype=torch.float64) / RATE
    tone = torch.sin(2 * torch.pi * 1000 * time).float().expand(6, -1)
    for row in respeed(Draws.of(1, range(6), torch.device("cpu")), tone):
        inner = row[200:12_000].double()
        peak = torch.fft.rfft(inner * torch.hann_window(len(inner)), 1 << 18).abs().argmax() / (1 << 18) * RATE
        assert 870 < peak < 1150
        angle = 2 * torch.pi * peak * time[200:12_000]
        basis = torch.stack([angle.sin(), angle.cos()], 1)
        rest = inner - basis @ torch.linalg.lstsq(basis, inner[:, None]).solution[:, 0]
        assert rest.norm() / inner.norm() < 0.05


def test_respeed_takes_out_what_would_fold_back():
    def played(hertz):
        wave = torch.from_numpy(tone(hertz, 4000).astype(np.float32)).expand(20, -1)
        return respeed(Draws.of(1, range(20), torch.device("cpu")), wave)[:, 200:3400]

    faster = torch.fft.rfft(played(1000)).abs().argmax(1) * RATE / 3200 > 1100
    assert faster.sum() > 2
    assert (played(7900)[faster].std(1) < 0.2 * played(1000)[faster].std(1)).all()  # 0.9 and more if it did


def test_convolution_is_the_textbook_one():
    x, response = (torch.randn(3, length, generator=torch.Generator().manual_seed(1)) for length in (50, 30))
    expected = np.stack([np.convolve(a, b)[:50] for a, b in zip(x.numpy(), response.numpy(), strict=True)])
    np.testing.assert_allclose(convolve(x, response), expected, atol=1e-4)


def test_codec_loses_what_is_weak_beside_its_band():
    draws = Draws.of(0, range(4), torch.device("cpu"))
    clean = torch.from_numpy(np.stack([voice(16_000, seed) for seed in range(4)]))
    coded = codec(draws, clean)
    loss = (coded - clean).norm(dim=1) / clean.norm(dim=1)
    assert (loss > 0.02).all()
    assert (loss < 0.8).all()
    assert not codec(draws, torch.zeros(1, 16_000).expand(4, -1)).any()


@pytest.mark.parametrize("length", [1, 100, 8000])
def test_synthetic_noise_is_finite_and_audible(length):
    made = synthetic_noise(Draws.of(0, range(100), torch.device("cpu")), length, RATE)
    assert made.shape == (100, length)
    assert torch.isfinite(made).all()
    if length > 1:
        torch.testing.assert_close(made.square().mean(1).sqrt(), torch.ones(100), rtol=0, atol=1e-3)
    if length == 8000:  # as noises do, most of them fall with the frequency
        assert (power(made, 0, 1000) > power(made, 4000, 8000)).float().mean() > 0.8


# --- corpora -------------------------------------------------------------------------------------------------------


def test_corpus(tmp_path):
    write(tmp_path / "a" / "x.wav", voice(8000), 8000)
    write(tmp_path / "b" / "empty.wav", voice(0))
    soundfile.write(tmp_path / "b" / "nan.wav", np.array([0.5, np.nan, np.inf]), RATE, subtype="FLOAT")
    loaded = Corpus.load([tmp_path / "a", tmp_path / "b"], RATE)
    assert len(loaded) == 2
    np.testing.assert_array_equal(loaded.recording(1), [16384, 0, 0])
    (tmp_path / "b" / "nan.wav").unlink()
    first = loaded.recording(0)
    assert first.shape == (16_000,)
    at = loaded.wrapped(torch.tensor([0, 1]), torch.tensor([15_990, 1]), 20)
    np.testing.assert_array_equal(at[0] * 32768, np.concatenate([first[-10:], first[:10]]))
    np.testing.assert_array_equal(at[1, :4], [0, 0, 0.5, 0])
    behind = loaded.at(torch.tensor([0]), torch.arange(15_999, 16_003)[None])
    np.testing.assert_array_equal(behind[0] * 32768, [first[-1], 0, 0, 0])
    short = Corpus.of([np.array([1, 2, 3], np.int16), np.array([4, 5], np.int16)], RATE)
    np.testing.assert_array_equal(short.at(torch.tensor([0]), torch.arange(1, 5)[None])[0] * 32768, [2, 3, 0, 0])
    with pytest.raises(AudioError, match="no audio files"):
        Corpus.load([tmp_path / "b"], RATE)
    cut = tmp_path / "a" / "x.wav"
    cut.write_bytes(cut.read_bytes()[:-1000])
    warnings = []
    assert Corpus.load([tmp_path / "a"], RATE, warnings).recording(0).size == 15_000
    assert warnings == [f"{cut}: header and file disagree about the length: what is there was taken"]
    rest, held_out = corpus([voice(10)] * 40).split(20)
    assert (len(rest), len(held_out)) == (38, 2)


def test_a_pack_is_the_corpus(tmp_path, speech):
    write(tmp_path / "a" / "x.wav", voice(8000), 16_000)
    folder = Corpus.load([tmp_path / "a"], RATE)
    _, part = corpus([voice(10 + i) for i in range(40)]).split(20)
    for name, packed in (("all", speech), ("part", part), ("one", folder)):
        packed.save(tmp_path / f"{name}.safetensors")
        loaded = Corpus.load([tmp_path / f"{name}.safetensors"], RATE)
        assert len(loaded) == len(packed)
        for index in range(len(packed)):
            np.testing.assert_array_equal(loaded.recording(index), packed.recording(index))
    both = Corpus.load([tmp_path / "a", tmp_path / "all.safetensors", tmp_path / "part.safetensors"], RATE)
    assert len(both) == 5 + 2 + 1
    np.testing.assert_array_equal(both.recording(5), part.recording(0))
    np.testing.assert_array_equal(both.recording(7), folder.recording(0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a readable pack"),
        (lambda p: p.write_text("RIFF"), "not a readable pack"),
        (lambda p: p.unlink(), "not a readable pack"),
        (lambda p: save_file({"x": torch.zeros(2)}, p), "not a corpus packed by"),
        (lambda p: repack(p, sizes=[5]), "damaged"),
        (lambda p: repack(p, sizes=[]), "damaged"),
        (lambda p: repack(p, sizes=[40_000, -1]), "damaged"),
        (lambda p: repack(p, rate=8000), "packed at 8000 Hz, 16000 Hz are needed"),
    ],
)
def test_bad_packs_are_refused(tmp_path, damage, message):
    path = tmp_path / "c.safetensors"
    corpus([voice(40_000)]).save(path)
    damage(path)
    with pytest.raises(AudioError, match=message) as caught:
        Corpus.load([path], RATE)
    assert str(path) in str(caught.value)


def repack(path, sizes=(40_000,), rate=RATE):
    header = {"fastenh.corpus": json.dumps({"format": 1, "sample_rate": rate})}
    tensors = {"samples": torch.zeros(40_000, dtype=torch.int16), "sizes": torch.tensor(sizes, dtype=torch.int64)}
    save_file(tensors, path, metadata=header)


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
        assert noisy.shape == clean.shape == (2, 1000)
        inside = noisy != 0
        np.testing.assert_allclose((noisy - clean)[inside], 0.5, atol=1e-4)
        starts |= {round(float(row[0]) * 32768) for row in clean}
    assert len(starts) > 10


def test_an_epoch_shows_each_pair_once(ramp_pairs):
    feed = PairFeed(ramp_pairs, batch_size=1, length=10_000, sample_rate=RATE, seed=3)
    lengths = [int((feed.batch(step)[0] != 0).sum()) for step in range(6)]
    assert sorted(lengths[:3]) == sorted(lengths[3:]) == [300, 5000, 7000]
    orders = {tuple(int((feed.batch(3 * epoch + n)[0] != 0).sum()) for n in range(3)) for epoch in range(8)}
    assert len(orders) > 1


def test_devices_share_the_batches_of_one(speech, noises, ramp_pairs):
    def feeds(share):
        mixer = Mixer(MixingConfig(), speech, noises, None, 8000, seed=0)
        return MixFeed(mixer, 4, 5, share), PairFeed(ramp_pairs, 4, 1000, RATE, 0, share)

    for kind in range(2):
        for step in (0, 7):
            whole = feeds(None)[kind].batch(step)
            parts = [feeds(Share(rank, 2))[kind].batch(step) for rank in range(2)]
            for side in range(2):
                torch.testing.assert_close(torch.cat([part[side] for part in parts]), whole[side], rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="cannot be shared out evenly"):
        feeds(Share(0, 3))[0].batch(0)


def test_a_gpu_mixes_many_batches_at_once(speech, noises, monkeypatch):
    """And rows that nothing was drawn for beside the others: each batch is that of its number."""
    monkeypatch.setattr("fastenh.data.feed._AT_ONCE", 3 * 2 * 8000)
    feed = MixFeed(Mixer(MixingConfig(), speech, noises, None, 8000, seed=0), 4, 5, Share(1, 2))
    expected = [feed.batch(step) for step in range(2, 9)]
    monkeypatch.setattr("fastenh.data.draws._multiple", lambda device: 4)
    assert len(feed.together(2)) == 3
    with closing(mixed_ahead(feed, 2)) as batches:
        for (noisy, clean), batch in zip(expected, batches, strict=False):
            assert batch[0].shape == (2, 8000)
            torch.testing.assert_close(batch[0], noisy, rtol=0, atol=1e-5)
            torch.testing.assert_close(batch[1], clean, rtol=0, atol=1e-5)


def test_what_goes_wrong_while_mixing_ahead_is_raised(speech, noises, monkeypatch):
    feed = MixFeed(Mixer(MixingConfig(), speech, noises, None, 8000, seed=0), 4, 5)

    def together(first):
        if first:
            raise RuntimeError("out of memory")
        return [feed.batch(0)]

    monkeypatch.setattr(feed, "together", together)
    batches = mixed_ahead(feed, 0)
    next(batches)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(batches)


def test_prefetching_keeps_the_order_and_passes_errors_on(speech, noises):
    feed = MixFeed(Mixer(PLAIN, speech, noises, None, 8000, seed=0), batch_size=2, steps_per_epoch=5)
    ahead = prefetch(feed, 3)
    for step in range(3, 8):
        torch.testing.assert_close(next(ahead)[0], feed.batch(step)[0], rtol=0, atol=0)
    ahead.close()

    class Broken:
        steps_per_epoch, device = 1, torch.device("cpu")

        def batch(self, step):
            raise PairError("a.wav is gone")

    with pytest.raises(PairError, match="gone"):
        next(prefetch(Broken(), 0))
