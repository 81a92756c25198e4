"""The weights in the package: that they enhance, whatever the level and however long the recording."""

import numpy as np
import pytest
from conftest import SAMPLES

from fastenh import Enhancer
from fastenh.audio.files import read_mono
from fastenh.audio.listing import list_audio
from fastenh.evaluate import metrics
from fastenh.models import checkpoint
from fastenh.models.registry import DEFAULT, MODELS

RATE = 16_000


@pytest.fixture(scope="module", params=["dpt", "dpt_complex"])
def enhancer(request):
    return Enhancer.from_pretrained(request.param, "cpu", "float32")


def sample(name):
    (noisy,) = (path for path in list_audio(SAMPLES) if path.stem == name)
    return read_mono(noisy, RATE), read_mono(SAMPLES / "clean" / noisy.name, RATE)


@pytest.mark.parametrize("name", [path.stem for path in list_audio(SAMPLES)])
def test_every_sample_gains_by_the_default(name):
    check_gain(Enhancer.from_pretrained(device="cpu", dtype="float32"), name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=() if path.stem in ("english-pink", "spanish-clicks") else pytest.mark.slow)
        for path in list_audio(SAMPLES)
    ],
)
def test_every_sample_gains_by_dpt(name):
    check_gain(Enhancer.from_pretrained("dpt", "cpu", "float32"), name)


def check_gain(enhancer, name):
    noisy, clean = sample(name)
    enhanced = enhancer(noisy, RATE)
    assert metrics.si_sdr(enhanced, clean) > metrics.si_sdr(noisy, clean) + 2.0


def test_the_default_is_shipped():
    assert DEFAULT == "dpt_complex"
    assert {"dpt", DEFAULT} <= checkpoint.shipped_models().keys()
    assert isinstance(Enhancer.from_pretrained(device="cpu").model.core, MODELS[DEFAULT].core)


@pytest.mark.slow
def test_gain_does_not_depend_on_the_level(enhancer):
    pytest.importorskip("pesq")
    noisy, clean = sample("english-pink")
    values = []
    for db in (0, -10, -20, -30):
        gain = 10 ** (db / 20)
        quantised = np.round(noisy * gain * 32768) / 32768  # as a 16-bit file holds it
        enhanced = np.round(enhancer(quantised.astype(np.float32), RATE) * 32768) / 32768
        values.append(metrics.pesq((enhanced / gain).astype(np.float32), clean))
    assert max(values) - min(values) <= 0.05, values


@pytest.mark.slow
def test_ten_minutes_are_as_good_as_their_parts(enhancer):
    noisy, clean = sample("english-pink")
    repeats = 600 * RATE // noisy.size
    enhanced = enhancer(np.tile(noisy, repeats), RATE).reshape(repeats, -1)
    values = np.array([metrics.si_sdr(part, clean) for part in enhanced])
    alone = metrics.si_sdr(enhancer(noisy, RATE), clean)
    assert abs(values.mean() - alone) < 0.3, (values.mean(), alone)
    assert abs(values[: repeats // 2].mean() - values[repeats // 2 :].mean()) < 0.1
    assert values.min() > alone - 1.0
