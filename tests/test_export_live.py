"""A step of live sound in ONNX computes what ``LiveModel`` computes, hop by hop, and runs without PyTorch."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice

from fastenh.cli import main
from fastenh.models import checkpoint
from fastenh.models.export import ExportError, export
from fastenh.models.live import HOP, LiveModel
from fastenh.models.live_step import LiveStep
from fastenh.models.registry import build, make_config

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "enhance_live_onnx.py"
SMALL = {"channels": 16, "conv_channels": 8, "bands": 16, "feed_forward": 32, "blocks": 1}
CONFIG = {**SMALL, "causal": True, "history": 20}  # frames: shorter than the sounds here


def call(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def saved(folder, **config):
    torch.manual_seed(0)
    model = build("dpt_complex", make_config("dpt_complex", config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    checkpoint.save(
        folder / "tiny.safetensors", "dpt_complex", make_config("dpt_complex", config), model, {}, half=False
    )
    return folder / "tiny.safetensors", model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("weights"), **CONFIG)[0]


@pytest.fixture(scope="module")
def live(weights):
    return LiveModel(checkpoint.load(weights)[0])


@pytest.fixture(scope="module")
def exported(weights):
    """The file that the command writes."""
    path = weights.with_suffix(".onnx")
    assert "tiny.onnx: 0." in call("export", weights, "-o", path, "--live")
    return path


def sound(hops, seed=0):
    """Silence, speech in noise that grows, silence again: (hops * 256,)."""
    length = hops * HOP
    waveform = (voice(length, seed) + noise(length, seed)) * np.linspace(0.01, 1, length, dtype=np.float32)
    waveform[: 3 * HOP] = 0
    waveform[length // 2 : length // 2 + 10 * HOP] = 0
    return waveform


def expected_of(live, waveform):
    state, made = live.start(), []
    with torch.inference_mode():
        for hop in torch.from_numpy(waveform).view(-1, 1, HOP):
            samples, state = live(hop, state)
            made.append(samples[0].numpy())
    return np.concatenate(made)


def assert_close(given, expected):
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() < 1e-5 * max(1e-3, float(np.abs(expected).max()))  # NaN is not less either


@pytest.mark.parametrize("config", [CONFIG, {**CONFIG, "heads": 4, "blocks": 3, "taps": 3, "history": 2}])
def test_the_step_is_the_live_model(config, tmp_path):
    """In PyTorch, where nothing but its form differs."""
    waveform = sound(80)
    live = LiveModel(saved(tmp_path, **config)[1])
    step = LiveStep(live)
    state = {name: torch.zeros(shape) for name, shape in step.state.items()}
    made = []
    with torch.inference_mode():
        for hop, samples in enumerate(torch.from_numpy(waveform).view(-1, 1, HOP)):
            enhanced, *following = step(samples, *state.values())
            made.append(enhanced[0].numpy())
            for (name, shape), after in zip(step.state.items(), following, strict=True):
                if name in step.rings:
                    assert after.shape == (shape[0], 1, shape[2])
                    state[name][:, hop % shape[1]] = after[:, 0]
                else:
                    assert after.shape == shape
                    state[name] = after
    assert_close(np.concatenate(made), expected_of(live, waveform))


def test_onnxruntime_gives_what_pytorch_gives(exported, live):
    """Over four seconds, the state carried, from silence on; the ring goes around several times."""
    waveform = sound(250)
    step = runpy.run_path(str(EXAMPLE))["Step"](onnxruntime.InferenceSession(exported))
    given = np.concatenate([step(hop) for hop in waveform.reshape(-1, HOP)])
    assert_close(given, expected_of(live, waveform))


def test_two_sounds_share_a_session_and_not_a_state(exported, live):
    session = onnxruntime.InferenceSession(exported)
    waveforms = [sound(40, seed) for seed in range(2)]
    steps = [runpy.run_path(str(EXAMPLE))["Step"](session) for _ in waveforms]
    pairs = zip(*(waveform.reshape(-1, HOP) for waveform in waveforms), strict=True)
    made = [[step(hop) for step, hop in zip(steps, pair, strict=True)] for pair in pairs]
    for waveform, given in zip(waveforms, zip(*made, strict=True), strict=True):
        assert_close(np.concatenate(given), expected_of(live, waveform))


def test_a_file_says_what_it_holds(exported, weights):
    session = onnxruntime.InferenceSession(exported)
    about = json.loads(session.get_modelmeta().custom_metadata_map["fastenh"])
    assert (about["model"], about["precision"]) == ("dpt_complex", "float32")
    assert about["sha256"] == checkpoint.read(weights).sha256
    assert about["rings"] == ["keys0", "values0"]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    assert (inputs[0].name, inputs[0].shape) == ("waveform", [1, HOP])
    assert (outputs[0].name, outputs[0].shape) == ("enhanced", [1, HOP])
    assert [given.name for given in outputs[1:]] == [f"next_{given.name}" for given in inputs[1:]]
    for before, after in zip(inputs[1:], outputs[1:], strict=True):
        assert after.shape == ([before.shape[0], 1, before.shape[2]] if before.name in about["rings"] else before.shape)


def test_the_example_enhances_without_pytorch(exported, weights, tmp_path):
    """The whole file, to the sample: what the causal model gives for it."""
    length = 60 * HOP + 77
    samples = np.stack([voice(length) + noise(length), noise(length)])
    soundfile.write(tmp_path / "in.wav", samples.T, 16_000, subtype="FLOAT")
    program = (
        "import runpy, sys\n"
        "for name in ('torch', 'fastenh', 'soxr'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, EXAMPLE, exported, tmp_path / "in.wav", tmp_path / "out.wav"]
    subprocess.run(command, check=True)
    with torch.inference_mode():
        expected = checkpoint.load(weights)[0](torch.from_numpy(samples).float()).numpy()
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0].T, expected, atol=2 / 2**15)
    assert len(EXAMPLE.read_text().splitlines()) <= 60


def test_what_the_command_refuses(exported, weights, tmp_path):
    target = tmp_path / "x.onnx"
    assert "running level" in call("export", weights, "-o", target, code=1)
    assert "--live" in call("export", weights, "-o", target, code=1)
    ahead = saved(tmp_path, **SMALL)[0]
    assert "looks ahead and cannot run live; dpt_complex-live can" in call(
        "export", ahead, "-o", target, "--live", code=1
    )
    assert "--int8" in call("export", weights, "-o", target, "--live", "--int8", code=2)
    assert "--compare" in call("export", weights, "--live", "--compare", tmp_path, tmp_path, code=2)
    assert not target.exists()
    assert "step of live sound" in call("enhance", SAMPLES, "-o", tmp_path / "out", "--model", exported, code=1)


def test_a_causal_model_has_no_whole_form(weights):
    with pytest.raises(ExportError, match="give --live"):
        export(checkpoint.load(weights)[0], {})
