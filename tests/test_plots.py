"""Pictures: what is drawn is what is there; what cannot be drawn is said in one line."""

import importlib.util
import json

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice

from fastenh.cli import main
from fastenh.models.blocks import AxisLayer
from fastenh.models.registry import build, make_config
from fastenh.plots import inside, pareto, spectrograms
from fastenh.plots.inside import attention_weights
from fastenh.plots.training import series
from fastenh_kernels.operations.axis_attention import reference

pytest.importorskip("matplotlib")
SAMPLE = SAMPLES / "english-pink.flac"
HEADS = {".png": b"\x89PNG\r\n", ".svg": b"<?xml"}


def call(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, voice(16_000) + noise(16_000), 16_000)
    return path


@pytest.fixture
def log(tmp_path):
    events = [{"kind": "step", "step": step, "loss": 5 / step} for step in range(20, 400, 20)]
    events += [
        {"kind": "epoch", "step": s, "valid_loss": 1.0, "valid_pesq": 2.0, "valid_stoi": None} for s in (100, 200)
    ]
    path = tmp_path / "run" / "log.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, events)))
    return path


@pytest.fixture
def results(tmp_path):
    def record(factor, pesq):
        return {"real_time_factor": factor, "pesq": {"mean": pesq} if pesq else {}}

    systems = {"noisy": record(None, 1.3), "mine": record(0.03, 2.3), "a/failed.onnx": record(0.1, None)}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"systems": systems}))
    return path


@pytest.fixture
def rivals(tmp_path):
    path = tmp_path / "rivals.csv"
    path.write_text("name,real_time_factor,pesq,stoi\nslow,0.2,2.1,0.8\nfast,0.001,1.4,0.7\nunknown,0.1,,0.9\n")
    return path


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_every_picture_is_written(short, log, results, rivals, tiny_checkpoint, tmp_path, ending):
    model = ("--model", tiny_checkpoint)
    for name, arguments in {
        "spectrogram": (short, SAMPLE, "--title", "one", "--title", "other"),
        "mask": (short, *model),
        "attention": (short, *model, "--axis", "frequency", "--head", 2, "--at", 0),
        "training": (log,),
        "pareto": (results, "--rivals", rivals),
    }.items():
        picture = tmp_path / "new" / f"{name}{ending}"
        call("plot", name, *arguments, "-o", picture)
        assert picture.read_bytes().startswith(HEADS[ending])
        if ending == ".svg":
            before = picture.read_bytes()
            call("plot", name, *arguments, "-o", picture)
            assert picture.read_bytes() == before


def test_powers_are_of_full_scale():
    time = np.arange(16_000) / 16_000
    levels = spectrograms.decibels(spectrograms.powers(np.sin(2 * np.pi * 1000 * time)))
    assert levels.max() == pytest.approx(0.0, abs=0.01)
    assert levels.max(axis=1).argmax() == 32  # 1000 Hz
    assert spectrograms.powers(np.ones(1)).shape == (257, 1)


@pytest.mark.parametrize("length", [1, 511, 512, 204_800, 204_801, 300_000])
def test_small_pictures_are_of_the_whole_recording(length):
    """However it comes in blocks, and also where the header is wrong about the length."""
    samples = noise(length, scale=0.1)
    whole = spectrograms._columns([samples], length)
    assert whole.shape[1] <= 401
    pieces = [samples[start : start + 65_536] for start in range(0, length, 65_536)]
    np.testing.assert_allclose(spectrograms._columns(pieces, length), whole)
    power = spectrograms.powers(np.pad(samples, (0, -length % 512)), 512)
    width = max(1, -(-length // (400 * 512)))
    assert whole.shape[1] == -(-power.shape[1] // width)
    np.testing.assert_allclose(whole[:, -1], power[:, (whole.shape[1] - 1) * width :].mean(axis=1))
    assert spectrograms._columns(pieces, 0).shape[0] == 257


@pytest.mark.parametrize("history", [0, 3])
@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_attention_weights_are_those_of_the_operation(axis, history):
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, 5, 3 * 8, dtype=torch.float64)
    weights = reference.attention_weights(qkv, 2, axis, history)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    attended = reference.laid_out(weights @ reference.sequences_of(qkv, 2, axis)[2], qkv, axis)
    torch.testing.assert_close(attended, reference.axis_attention(qkv, 2, axis, 0.0, history))


def test_attention_is_that_of_the_chosen_layer():
    torch.manual_seed(0)
    small = {"channels": 16, "conv_channels": 8, "bands": 16, "feed_forward": 32, "blocks": 2}
    model = build("dpt_complex", make_config("dpt_complex", small)).eval()
    spectrum = model.frontend.stft(torch.from_numpy(voice(4_000))[None])
    layers = [module for module in model.core.modules() if isinstance(module, AxisLayer)]
    assert [layer.axis for layer in layers] == ["time", "frequency"] * 2
    with torch.no_grad():
        layers[2].qkv.weight.zero_()
        layers[2].qkv.bias.zero_()
    frames = spectrum.shape[2]
    even = attention_weights(model, spectrum, "time", 2)
    assert even.shape == (16, 2, frames, frames)
    torch.testing.assert_close(even, torch.full_like(even, 1 / frames))
    assert attention_weights(model, spectrum, "time", 1).std() > 1e-6
    assert attention_weights(model, spectrum, "frequency", 1).shape == (frames, 2, 16, 16)


def test_the_mask_is_drawn_as_gain_in_decibels(short, tiny_checkpoint, tmp_path, monkeypatch):
    half = type("Half", (torch.nn.Module,), {"forward": lambda self, spectrum: 0.5 * spectrum})()
    model, spectrum = inside._heard(short, tiny_checkpoint)
    model.core = half
    monkeypatch.setattr(inside, "_heard", lambda recording, source: (model, spectrum))
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", _recording(drawn))
    inside.draw_mask(short, tiny_checkpoint, tmp_path / "mask.png")
    assert np.median(drawn[0]) == pytest.approx(-6.02, abs=0.01)


def _recording(drawn):
    from matplotlib.axes import Axes

    real = Axes.imshow

    def imshow(self, values, *arguments, **options):
        drawn.append(np.asarray(values))
        return real(self, values, *arguments, **options)

    return imshow


def test_steps_made_twice_are_drawn_once():
    events = [{"kind": "step", "step": 20, "loss": 3.0}, {"kind": "step", "step": 40, "loss": 9.0}]
    events += [{"kind": "epoch", "step": 40, "valid_loss": 1.0}, {"kind": "step", "step": 40, "loss": 2.0}]
    events += [{"kind": "step", "step": 60, "loss": None}]
    assert series(events, "step", "loss") == ([20, 40], [3.0, 2.0])
    assert series(events, "epoch", "valid_loss") == ([40], [1.0])


def test_the_line_joins_what_nothing_beats(results, rivals):
    points, noisy = pareto.read_results(results, "pesq")
    points += pareto.read_rivals(rivals, "pesq")
    assert noisy == 1.3
    assert {point.name: point.ours for point in points} == {"mine": True, "slow": False, "fast": False}
    assert [point.name for point in pareto.front(points)] == ["fast", "mine"]


def test_what_cannot_be_drawn(short, log, results, tiny_checkpoint, tmp_path):
    empty, long, picture = tmp_path / "empty.wav", tmp_path / "long.wav", tmp_path / "x.png"
    soundfile.write(empty, np.zeros(0), 16_000)
    soundfile.write(long, np.zeros(31 * 8_000), 8_000)
    bad = tmp_path / "bad.txt"
    bad.write_text("nothing")
    attention = ("attention", short, "--model", tiny_checkpoint)
    for arguments, code, words in (
        (("mask", short, "-o", tmp_path / "x.pdf"), 2, "ends in .png or .svg, unlike x.pdf"),
        (("spectrogram", short, "--title", "a", "--title", "b"), 2, "--title: 2 of them for 1"),
        (("spectrogram", empty), 1, "empty.wav: holds no samples"),
        (("mask", empty), 1, "empty.wav: holds no samples"),
        (("mask", long), 1, "long.wav: longer than 30 s"),
        ((*attention, "--block", 2), 2, "--block 2: there are blocks 1 to 1 along time"),
        ((*attention, "--head", 3), 2, "--head 3: there are heads 1 to 2"),
        ((*attention, "--at", 65), 2, "--at 65: there are bands 0 to 64"),
        (("training", bad), 1, "bad.txt: not a log.jsonl"),
        (("training", results), 1, "results.json: no step"),
        (("pareto", bad), 1, "bad.txt: not the results"),
        (("pareto", results, "--rivals", log), 1, "log.jsonl: not a CSV"),
        (
            ("pareto", results, "--metric", "stoi"),
            1,
            "results.json: not the results of fastenh evaluate --out with STOI",
        ),
    ):
        given = arguments if "-o" in arguments else (*arguments, "-o", picture)
        assert words in call("plot", *given, code=code)
    assert not picture.exists()


def test_matplotlib_is_an_extra(short, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else there(name))
    words = "matplotlib cannot be imported: pip install 'fastenh[plots]'"
    assert words in call("plot", "spectrogram", short, "-o", tmp_path / "x.png", code=1)
    arguments = ("enhance", short, "-o", tmp_path / "out.wav", "--report")
    assert words in call(*arguments, tmp_path / "report.html", code=1)
    assert not (tmp_path / "out.wav").exists()
    call(*arguments, tmp_path / "report.json")


def test_a_page_about_a_job(tiny_checkpoint, tmp_path):
    folder, page = tmp_path / "in", tmp_path / "deep" / "page.html"
    folder.mkdir()
    soundfile.write(folder / "a<b>&.wav", np.stack([voice(30_000), noise(30_000)]).T, 44_100)
    soundfile.write(folder / "empty.wav", np.zeros(0), 16_000)
    (folder / "bad.wav").write_bytes(b"no sound")
    job = ("enhance", folder, "-o", tmp_path / "out", "--model", tiny_checkpoint, "--report", page)
    call(*job, code=1)
    text = page.read_text()
    assert "2 enhanced, 0 skipped, 1 failed" in text
    assert "a&lt;b&gt;&amp;.wav" in text
    assert "<b>&." not in text
    assert text.count('src="data:image/png;base64,') == 2
    assert "empty.wav: holds no samples" in text
    assert text.count("bad.wav") >= 2  # and why
    assert "http" not in text
    call(*job, code=1)
    assert page.read_text().count("data:image") == 2  # skipped files have their pictures, too
