"""Foreign checkpoints become ours or are refused in one line; ours are described, changed and averaged."""

import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import TINY_DPT, noise, voice
from torch import nn

from fastenh.cli import main
from fastenh.models import checkpoint
from fastenh.models.registry import MODELS, build


def call(*arguments, code=0):
    result = CliRunner().invoke(main, ["checkpoint", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        make = lambda: nn.TransformerEncoderLayer(128, 4, 512, 0.1, norm_first=True, batch_first=True)  # noqa: E731
        self.freq_transformer, self.time_transformer = make(), make()


class Textbook(nn.Module):
    """The dual-path transformer as another program might name and order its parts."""

    def __init__(self):
        super().__init__()
        self.encoder1 = nn.Sequential(nn.Conv2d(1, 32, 3, (2, 1), 1), nn.BatchNorm2d(32), nn.ReLU())
        self.encoder2 = nn.Sequential(nn.Conv2d(32, 128, 3, (2, 1), 1), nn.BatchNorm2d(128), nn.ReLU())
        self.blocks = nn.ModuleList([Block(), Block()])
        self.decoder = nn.Sequential(
            nn.Conv2d(128, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 1, 1)
        )

    def forward(self, spectrum):
        x = skip = self.encoder2(self.encoder1(torch.log1p(spectrum.abs()).unsqueeze(1)))
        b, c, f, t = x.shape
        for block in self.blocks:
            x = block.freq_transformer(x.permute(0, 3, 2, 1).reshape(b * t, f, c)).view(b, t, f, c).permute(0, 3, 2, 1)
            x = block.time_transformer(x.permute(0, 2, 3, 1).reshape(b * f, t, c)).view(b, f, t, c).permute(0, 3, 1, 2)
        up = nn.functional.interpolate(x + skip, size=spectrum.shape[1:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.decoder(up)).squeeze(1) * spectrum


@pytest.fixture(scope="module")
def textbook():
    torch.manual_seed(5)
    model = Textbook().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


FORMS = {
    "raw": lambda state: state,
    "best": lambda state: {"epoch": 7, "model": state, "val_loss": np.float64(0.25)},
    "full": lambda state: {
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "scheduler_state_dict": {"best": np.float32(0.3)},
        "history": {"val_loss": [np.float64(0.5), np.float64(0.25)], "epoch": [np.int64(1)]},
    },
    "parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_origins_forms_compute_the_same_once_converted(form, textbook, tmp_path):
    torch.save(FORMS[form](textbook.state_dict()), tmp_path / "model.pth")
    assert "904,705" in call("info", tmp_path / "model.pth")
    call("convert", tmp_path / "model.pth", "-o", tmp_path / "ours.safetensors")
    ours, found = checkpoint.load(tmp_path / "ours.safetensors")
    assert found.name == "dpt"
    assert found.training["converted_from"] == "model.pth"
    assert found.training.get("val_loss") == (0.25 if form == "best" else None)
    signal = torch.from_numpy(voice(16_000) + noise(16_000))[None]
    with torch.no_grad():
        spectrum = ours.frontend.stft(signal)
        torch.testing.assert_close(ours.core(spectrum), textbook(spectrum), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_of_every_model_are_recognised(name, tmp_path):
    model = build(name)
    prefixed = {f"net.{key}": value for key, value in model.core.state_dict().items()}
    torch.save(prefixed | {"net.positions.pe": torch.zeros(1, 512, 8)}, tmp_path / "m.pth")
    assert f"{name}, " in call("convert", tmp_path / "m.pth", "-o", tmp_path / "ours.safetensors")
    found = checkpoint.read(tmp_path / "ours.safetensors").tensors
    for key, value in model.core.state_dict().items():
        assert torch.equal(found[key], value), key


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.save({"weights": {"a": 1}, "epoch": 3}, p), "no state dict in it; keys found: weights, epoch"),
        (lambda p: torch.save({"conv.weight": torch.zeros(3, 3)}, p), "keys found: conv.weight (3, 3)"),
        (lambda p: torch.save([1, 2], p), "holds a list"),
        (lambda p: torch.save({"model": nn.Linear(2, 2)}, p), "read safely (it holds torch.nn.modules.linear.Linear"),
        (lambda p: p.write_bytes(pickle.dumps(Evil())), "read safely"),
        (lambda p: torch.save({"model": Evil()}, p), "read safely (it holds"),
        (lambda p: p.write_bytes(b"nothing"), "read safely"),
        (lambda p: (torch.save({"a": torch.zeros(1000)}, p), p.write_bytes(p.read_bytes()[:900])), "read safely"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(make, message, tmp_path):
    make(tmp_path / "m.pth")
    for command in (("convert", tmp_path / "m.pth", "-o", tmp_path / "o.safetensors"), ("info", tmp_path / "m.pth")):
        output = call(*command, code=1)
        assert any(part in output for part in message.split("|")), output
        assert str(tmp_path / "m.pth") in output
        assert "\nrun" not in output
        assert "weights_only" not in output  # PyTorch's advice to switch safety off
    assert not (tmp_path / "o.safetensors").exists()


def test_the_configuration_can_be_changed_where_the_weights_stay(tmp_path):
    source = tmp_path / "mel.safetensors"
    model = build("mel_transformer")
    checkpoint.save(source, "mel_transformer", MODELS["mel_transformer"].config(), model, {"steps": 3}, half=False)
    target = tmp_path / "griffin.safetensors"
    call("convert", source, "-o", target, "--set", "reconstruction=griffin_lim", "--half")
    found = checkpoint.read(target)
    assert (found.config.reconstruction, found.training) == ("griffin_lim", {"steps": 3})
    assert found.tensors["body.head.weight"].dtype == torch.float16
    other = tmp_path / "x.safetensors"
    assert "do not fit" in call("convert", source, "-o", other, "--set", "channels=[8, 16, 32]", code=1)
    assert "must be 'gain' or" in call("convert", source, "-o", other, "--set", "reconstruction=magic", code=2)
    assert "no such key" in call("convert", source, "-o", other, "--set", "colour=red", code=2)
    assert "is a mel_transformer, not a dpt" in call("convert", source, "-o", other, "--model", "dpt", code=1)
    assert "not replaced" in call("convert", source, "-o", target, code=2)


def test_info_of_the_shipped_and_of_the_missing():
    output = call("info", "dpt")
    assert "parameters: 904,705" in output
    assert "sha256" in output
    assert "no shipped weights" in call("info", "nobody", code=1)


def test_average(tmp_path):
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(build("dpt", TINY_DPT))
        checkpoint.save(tmp_path / f"{seed}.safetensors", "dpt", TINY_DPT, models[-1], {"seed": seed}, half=False)
    files = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    call("average", *files, "-o", tmp_path / "mean.safetensors")
    found = checkpoint.read(tmp_path / "mean.safetensors")
    for key, value in found.tensors.items():
        given = torch.stack([model.core.state_dict()[key].double() for model in models])
        torch.testing.assert_close(
            value.double(), given.mean(0) if value.is_floating_point() else given[0], atol=1e-6, rtol=0
        )
    assert [part["training"]["seed"] for part in found.training["average_of"]] == [0, 1, 2]
    output = call("average", files[0], "dpt", "-o", tmp_path / "no.safetensors", code=1)
    assert "not of the model and configuration" in output


def test_names_are_shown_in_plain_characters(tmp_path):
    odd = tmp_path / "\x1b[31mred\n.safetensors"
    checkpoint.save(odd, "crn", MODELS["crn"].config(), build("crn"), {}, half=True)
    output = call("info", odd)
    assert "\x1b" not in output
    assert "\\x1b[31mred\\n.safetensors:\n" in output
    assert "\x1b" not in call("info", odd.with_name("\x1bgone"), code=1)
