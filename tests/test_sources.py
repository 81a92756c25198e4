"""What is held out for validation is not trained on."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise

from fastenh.audio.files import AudioError
from fastenh.data.feed import PairFeed
from fastenh.data.pairs import match_pairs
from fastenh.train.recipe import load_recipe
from fastenh.train.sources import open_sources

LOW, HIGH, RATE = 1000, 3000, 16_000
PLAIN = [
    "mixing.noise_only=0", "mixing.clipping=0", "mixing.codec=0", "mixing.babble=0", "mixing.synthetic_noise=0",
    "data.seconds=0.1", "data.batch_size=20", "run.steps_per_epoch=2", "run.validation_pairs=6",
]  # fmt: skip


@pytest.fixture
def recordings(tmp_path):
    """Forty of speech, noise, and noisy speech: the first and the twenty-first are low tones, the others high ones."""
    time = np.arange(1600) / RATE
    for index in range(40):
        tone = 0.3 * np.sin(2 * np.pi * (HIGH if index % 20 else LOW) * time) + noise(1600, index, 0.01)
        sides = {"speech": tone, "noise": tone[::-1], "noisy": tone + noise(1600, index + 50, 0.001)}
        for folder, samples in sides.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            soundfile.write(tmp_path / folder / f"{index:02}.wav", samples, RATE)
    return tmp_path


def is_low(samples):
    """(..., L) -> (...): whether the loudest frequency is nearer to the low one."""
    spectrum = np.abs(np.fft.rfft(samples))
    return spectrum.argmax(-1) * RATE / np.shape(samples)[-1] < (LOW + HIGH) / 2


def check(sources, sides):
    """sides: what is looked at, of a noisy and a clean waveform."""
    for pair in sources.validation:
        assert all(is_low(side) for side in sides(*pair))
    for step in range(2):
        assert not any(is_low(side.numpy()).any() for side in sides(*sources.feed.batch(step)))


def test_recordings_held_out_of_a_mix_are_not_trained_on(recordings):
    given = [f"data.clean={recordings / 'speech'}", f"data.noise={recordings / 'noise'}"]
    sources = open_sources(load_recipe("dpt-mix", [*PLAIN, *given]))
    assert len(sources.validation) == 6
    check(sources, lambda noisy, clean: (clean, noisy - clean))


def test_pairs_held_out_are_not_trained_on(recordings):
    given = [f"data.noisy={recordings / 'noisy'}", f"data.clean={recordings / 'speech'}"]
    sources = open_sources(load_recipe("dpt", [*PLAIN, *given]))
    assert len(sources.validation) == 2
    check(sources, lambda noisy, clean: (noisy, clean))


MIX = ("dpt-mix", {"data.clean": "speech", "data.noise": "noise"})
PAIRS = ("dpt", {"data.clean": "speech", "data.noisy": "noisy"})


@pytest.mark.parametrize(("name", "folders"), [MIX, PAIRS])
def test_a_broken_file_is_named_and_left_out_and_more_are_an_error(recordings, name, folders):
    given = [f"{key}={recordings / folder}" for key, folder in folders.items()]
    (recordings / "speech" / "07.wav").write_bytes(b"no sound")
    sources = open_sources(load_recipe(name, [*PLAIN, *given]))
    assert len(sources.warnings) == 1
    assert "07.wav: cannot be read as sound" in sources.warnings[0]
    assert "left out" in sources.warnings[0]
    assert torch.isfinite(sources.feed.batch(0)[0]).all()
    (recordings / "speech" / "09.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"07.wav: .*\(2 of 40 files cannot be used\)"):
        open_sources(load_recipe(name, [*PLAIN, *given]))


def test_a_pair_that_turns_out_to_be_broken_is_replaced_by_the_next(recordings, caplog):
    """A cut FLAC: its header says the length that it had."""
    pairs = match_pairs(recordings / "noisy", recordings / "speech")
    feed = PairFeed(pairs, 40, 1600, RATE, seed=0)
    whole = feed.batch(0)[1]
    for pair in pairs[5:7]:
        path = pair.noisy.with_suffix(".flac")
        soundfile.write(path, soundfile.read(pair.noisy)[0], RATE)
        path.write_bytes(path.read_bytes()[:500])
        pair.noisy.unlink()
    pairs = match_pairs(recordings / "noisy", recordings / "speech")
    feed = PairFeed(pairs, 40, 1600, RATE, seed=0)
    feed.pairs = [*pairs[:6], *pairs[7:], pairs[7]]
    batch = feed.batch(0)[1]
    assert torch.isfinite(batch).all()
    assert 1 <= (batch != whole).any(1).sum() <= 36
    assert [record.message.count("05.flac") for record in caplog.records] == [1]
    feed.pairs = pairs
    with pytest.raises(AudioError, match="2 of 40 files cannot be used"):
        feed.batch(1)


def test_a_corpus_too_small_to_be_held_out_of_gives_other_pairs_for_validation(data):
    given = [f"data.clean={data / 'speech'}", f"data.noise={data / 'noise'}"]
    sources = open_sources(load_recipe("dpt-mix", [*PLAIN, *given]))
    trained = sources.feed.batch(0)[0]
    for noisy, _ in sources.validation:
        assert (trained - torch.from_numpy(noisy)).abs().amax(1).min() > 1e-3
