"""The share of a training step that is spent on making its batch: mixing in line, beside the step itself."""

import numpy as np
import pytest
import torch

from fastenh.data.corpus import Corpus
from fastenh.data.feed import MixFeed
from fastenh.data.mixing import Mixer
from fastenh.train.loop import Trainer
from fastenh.train.recipe import load_recipe
from fastenh.train.sources import Sources

RATE = 16_000


@pytest.fixture(scope="module")
def feed(device):
    """The release recipe's mixing of noise bursts that stand for speech, noise and rooms."""
    rng = np.random.default_rng(0)
    bursts = [3000 * rng.standard_normal(12 * RATE) * (np.arange(12 * RATE) % RATE < RATE * 0.7) for _ in range(40)]
    decay = 20_000 * np.exp(-np.arange(RATE // 2) / 1500) * rng.standard_normal(RATE // 2)
    corpora = ([*bursts], [3000 * rng.standard_normal(30 * RATE) for _ in range(10)], [decay] * 8)
    speech, noise, rooms = (Corpus.of([x.astype(np.int16) for x in given], RATE) for given in corpora)
    recipe = _recipe(device)
    mixer = Mixer(recipe.mixing, speech.to(device), noise.to(device), rooms, int(recipe.data.seconds * RATE), seed=0)
    return MixFeed(mixer, recipe.data.batch_size, steps_per_epoch=100)


def _recipe(device):
    return load_recipe("dpt-mix", ["data.batch_size=64"] if device.type == "cuda" else [])


@pytest.mark.parametrize("part", ["batch", "step"])
def test_data_beside_the_step(benchmark, device, feed, part, tmp_path):
    """``batch`` alone, and ``step`` with its batch: the first over the second is the share of the data."""
    benchmark.group = f"data, {feed.batch_size} clips of 2 s, {device.type}"
    trainer = Trainer(_recipe(device), Sources(feed, [], "", []), tmp_path, device)
    steps = iter(range(10**9))

    def batch():
        made = feed.batch(next(steps))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return made

    def step():
        loss = trainer.advance(map(feed.batch, steps))
        assert np.isfinite(loss)
        return loss

    benchmark.pedantic(batch if part == "batch" else step, rounds=5, warmup_rounds=2)
    benchmark.extra_info["x_realtime"] = round(feed.batch_size * 2 / benchmark.stats.stats.median, 1)
