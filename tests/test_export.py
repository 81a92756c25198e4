"""Exported models compute what PyTorch computes, whatever the length, and enhance without it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice

from fastenh import Enhancer
from fastenh.audio.files import read_mono
from fastenh.audio.listing import list_audio
from fastenh.cli import main
from fastenh.enhance.exported import ExportedModel
from fastenh.evaluate import metrics
from fastenh.evaluate.comparison import Comparison, System
from fastenh.evaluate.forms import forms_table
from fastenh.models import checkpoint
from fastenh.models.checkpoint import CheckpointError
from fastenh.models.export import ExportError, export, quantised
from fastenh.models.registry import build, make_config

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "enhance_onnx.py"
TINY = {
    "dpt_complex": {"channels": 16, "conv_channels": 8, "bands": 16, "feed_forward": 32, "blocks": 1},
    "dpt": {"channels": 16, "front_channels": 4, "head_channels": 8, "heads": 2, "feed_forward": 32, "blocks": 1},
    "crn": {"channels": [4, 8, 8], "decoder_channels": [8, 4, 4]},
    "mel_transformer": {"channels": [4, 8, 8], "heads": 2, "feed_forward": 16, "layers": 1},
    "stft_transformer": {"channels": [4, 8, 8], "heads": 2, "feed_forward": 16, "layers": 1},
}
# one sample, odd ones, around a hop and a window, whole hops (the last frame of 257 samples is all but silent)
LENGTHS = (1, 2, 127, 255, 256, 257, 511, 513, 5_001, 16_000, 65_280)


def tiny(name, **changes):
    torch.manual_seed(0)
    return build(name, make_config(name, {**TINY[name], **changes})).eval()


def call(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture(scope="module")
def model():
    return tiny("dpt_complex")


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(path, "dpt_complex", make_config("dpt_complex", TINY["dpt_complex"]), model, {}, half=False)
    return path


@pytest.fixture(scope="module")
def exported(weights):
    """The file that the command writes."""
    path = weights.with_suffix(".onnx")
    assert "tiny.onnx: 0." in call("export", weights, "-o", path)
    return path


def assert_equal(runs, model, batch, length):
    waveform = torch.from_numpy(np.stack([voice(length, seed) + noise(length, seed) for seed in range(batch)]))
    with torch.no_grad():
        expected = model(waveform)
    given = runs(waveform)
    assert given.shape == expected.shape
    error = (given - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    assert error < 1e-4, (batch, length, float(error))  # NaN is not less either


def written(model, folder):
    path = folder / "model.onnx"
    path.write_bytes(export(model, {"model": "tiny"}).SerializeToString())
    return ExportedModel(path)


def test_every_length_gives_what_pytorch_gives(exported, model):
    runs = ExportedModel(exported)
    for length in LENGTHS:
        assert_equal(runs, model, 1, length)
    assert_equal(runs, model, 3, 1_001)


def test_silence_stays_silence(exported):
    runs = ExportedModel(exported)
    assert not runs(torch.zeros(1, 1_000)).any()
    half = torch.from_numpy(np.concatenate([voice(4_000), np.zeros(4_000, np.float32)]))[None]
    assert runs(half).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dpt", {"hop": 128}),
        ("crn", {}),
        ("mel_transformer", {}),
        ("stft_transformer", {}),
    ],
)
def test_every_model(name, changes, tmp_path):
    other = tiny(name, **changes)
    runs = written(other, tmp_path)
    for length in (1, 129, 257, 5_003):
        assert_equal(runs, other, 1, length)
    assert_equal(runs, other, 2, 2_000)


@pytest.mark.slow
def test_a_model_that_cannot_be_written_says_why():
    with pytest.raises(ExportError, match="cannot be written as ONNX"):
        export(tiny("mel_transformer", reconstruction="griffin_lim"), {})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("dpt_complex", 0.8e6), ("dpt", 1.5e6)])
def test_shipped_weights(name, limit, tmp_path):
    shipped = checkpoint.load(name)[0]
    paths = {precision: tmp_path / f"{precision}.onnx" for precision in ("float32", "int8")}
    made = export(shipped, {"model": name})
    paths["float32"].write_bytes(made.SerializeToString())
    paths["int8"].write_bytes(quantised(made).SerializeToString())
    assert paths["int8"].stat().st_size < limit
    runs = ExportedModel(paths["float32"])
    for length in LENGTHS:
        assert_equal(runs, shipped, 1, length)
    scores = {}
    for precision, path in paths.items():
        enhancer = Enhancer.from_pretrained(path)
        rows = []
        for noisy in list_audio(SAMPLES):
            clean = read_mono(SAMPLES / "clean" / noisy.name, 16_000)
            rows.append(metrics.score(enhancer(read_mono(noisy, 16_000), 16_000), clean, metrics.available()))
        scores[precision] = {metric: np.mean([row[metric] for row in rows]) for metric in metrics.available()}
    limits = {"pesq": 0.03, "stoi": 0.005, "si_sdr": 0.2}
    for metric, before in scores["float32"].items():
        assert scores["int8"][metric] > before - limits[metric], metric


def test_int8_is_close(exported, model, tmp_path):
    path = tmp_path / "int8.onnx"
    made = quantised(onnx.load(exported))
    assert "MatMulInteger" in {node.op_type for node in made.graph.node}
    path.write_bytes(made.SerializeToString())
    runs = ExportedModel(path)
    assert runs.about["precision"] == "int8"
    waveform = torch.from_numpy(voice(16_000) + noise(16_000))[None]
    with torch.no_grad():
        expected = model(waveform)
    error = (runs(waveform) - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    assert runs(torch.zeros(1, 1)).isfinite().all()


def test_a_file_says_what_it_holds(exported, weights):
    about = ExportedModel(exported).about
    assert about["model"] == "dpt_complex"
    assert about["precision"] == "float32"
    assert about["sha256"] == checkpoint.read(weights).sha256


def test_enhancing_with_an_exported_model(exported, weights, tmp_path):
    """Several windows, two channels, another rate: the contract of the output, and the samples of PyTorch."""
    noisy = np.stack([voice(450_000, 1, 44_100), noise(450_000)]).T
    source = tmp_path / "in" / "a.wav"
    source.parent.mkdir()
    soundfile.write(source, noisy, 44_100, subtype="PCM_24")
    report = tmp_path / "report.json"
    band = ("--bandwidth", "16k")  # what is above follows a quotient of both sides
    call(
        "enhance",
        source.parent,
        "-o",
        tmp_path / "onnx",
        "--model",
        exported,
        "--report",
        report,
        "--threads",
        2,
        *band,
    )
    call("enhance", source.parent, "-o", tmp_path / "torch", "--model", weights, "--dtype", "float32", *band)
    onnx_side, rate = soundfile.read(tmp_path / "onnx" / "a.wav")
    torch_side, _ = soundfile.read(tmp_path / "torch" / "a.wav")
    assert (onnx_side.shape, rate) == (noisy.shape, 44_100)
    np.testing.assert_allclose(onnx_side, torch_side, atol=2e-6)
    settings = json.loads(report.read_text())["settings"]
    assert settings["backend"] == "onnxruntime"
    assert settings["dtype"] == "torch.float32"
    other = tmp_path / "int8.onnx"
    other.write_bytes(quantised(onnx.load(exported)).SerializeToString())
    again = call("enhance", source.parent, "-o", tmp_path / "onnx", "--model", other, *band)
    assert "1 again: input or settings changed" in again


def test_what_an_exported_model_does_not_take(exported, tmp_path):
    for option in (("--backend", "reference"), ("--dtype", "bfloat16"), ("--device", "cuda")):
        output = call("enhance", SAMPLES, "-o", tmp_path / "out", "--model", exported, *option, code=2)
        assert "export" in output


def test_files_that_are_no_exported_models(tmp_path):
    bad, foreign = tmp_path / "bad.onnx", tmp_path / "foreign.onnx"
    bad.write_bytes(b"no model at all")
    nothing = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[n] x) => (float[n] y) {y = Neg(x)}'
    )
    onnx.save(nothing, foreign)
    for path, words in (
        (bad, "not a readable ONNX model"),
        (foreign, "not one that fastenh export wrote"),
        (tmp_path / "none.onnx", "No such file"),
    ):
        with pytest.raises(CheckpointError, match=f"{path.name}: .*{words}"):
            Enhancer.from_pretrained(path)
        assert words in call("enhance", SAMPLES, "-o", tmp_path / "out", "--model", path, code=1)


def test_wrong_usage(exported, weights, tmp_path):
    assert "-o FILE.onnx" in call("export", weights, code=2)
    assert "ends in .onnx, unlike model.pt" in call("export", weights, "-o", tmp_path / "model.pt", code=2)
    before = exported.read_bytes()
    assert "is there already" in call("export", weights, "-o", exported, code=1)
    assert exported.read_bytes() == before
    assert "no shipped weights for 'nothing'" in call("export", "nothing", "-o", tmp_path / "x.onnx", code=1)
    assert not (tmp_path / "x.onnx").exists()


def test_a_missing_package_is_named_with_its_extra(exported, weights, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else there(name))
    output = call("export", weights, "-o", tmp_path / "x.onnx", code=1)
    assert "onnx and onnxscript cannot be imported: pip install 'fastenh[onnx]'" in output
    assert "onnxruntime cannot be imported" in call(
        "enhance", SAMPLES, "-o", tmp_path / "out", "--model", exported, code=1
    )


def test_the_example_enhances_without_pytorch(exported, tmp_path):
    """In windows like the command's, to the same samples; two channels."""
    length = 2 * 57_280 + 30_001
    soundfile.write(tmp_path / "in.wav", np.stack([voice(length) + noise(length), noise(length)]).T, 16_000)
    program = (
        "import runpy, sys\n"
        "for name in ('torch', 'fastenh', 'soxr'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, EXAMPLE, exported, tmp_path / "in.wav", tmp_path / "out.wav"]
    subprocess.run(command, check=True)
    call("enhance", tmp_path / "in.wav", "-o", tmp_path / "expected.wav", "--model", exported)
    given, expected = (soundfile.read(tmp_path / name)[0] for name in ("out.wav", "expected.wav"))
    np.testing.assert_allclose(given, expected, atol=2 / 2**15)
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def test_the_table_of_forms():
    systems = [
        System(name, {"a": {"pesq": value, "si_sdr": "silence"}}, 0.25) for name, value in (("noisy", 1.0), ("x", 2.0))
    ]
    lines = forms_table(Comparison(systems, ("pesq", "si_sdr"), []), {"x": 1_234_567}).splitlines()
    assert lines[0] == "|  | PESQ | SI-SDR (dB) | real-time factor | MB |"
    assert lines[2] == "| noisy | 1.000 | no value |  |  |"
    assert lines[3] == "| x | 2.000 | no value | 0.250 | 1.23 |"


@pytest.mark.slow
def test_comparison_of_the_forms(weights, tmp_path):
    for side, folder in (("noisy", SAMPLES), ("clean", SAMPLES / "clean")):
        (tmp_path / side).mkdir()
        samples, rate = soundfile.read(folder / "english-pink.flac")
        soundfile.write(tmp_path / side / "x.wav", samples, rate)
    lines = call("export", weights, "--compare", tmp_path / "noisy", tmp_path / "clean", "--jobs", 1).splitlines()
    forms = ["PyTorch, float32", "PyTorch, bfloat16", "onnxruntime, float32", "onnxruntime, int8"]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| noisy", *(f"| {form}" for form in forms)]
