"""Checkpoints: what is saved is loaded, and nothing else is."""

import copy
import json

import pytest
import torch
from conftest import TINY_DPT
from safetensors.torch import load_file, save_file

from fastenh.models import checkpoint
from fastenh.models.checkpoint import CheckpointError


def test_round_trip(tiny_model, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, "dpt", TINY_DPT, tiny_model, {"steps": 3}, half=False)
    model, found = checkpoint.load(path)
    assert (found.name, found.config, found.training) == ("dpt", TINY_DPT, {"steps": 3})
    signal = torch.randn(1, 3000)
    with torch.inference_mode():
        torch.testing.assert_close(model(signal), tiny_model(signal), rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_half_keeps_what_is_beyond_fp16(tiny_model, tmp_path):
    model = copy.deepcopy(tiny_model)
    model.core.front_norm.running_var[0] = 1e5
    checkpoint.save(tmp_path / "half.safetensors", "dpt", TINY_DPT, model, {}, half=True)
    loaded = checkpoint.load(tmp_path / "half.safetensors")[0].core
    assert loaded.front_norm.running_var[0].item() == pytest.approx(1e5)


def test_half_is_half_as_large_and_close(tiny_model, tmp_path):
    for half in (False, True):
        checkpoint.save(tmp_path / f"{half}.safetensors", "dpt", TINY_DPT, tiny_model, {}, half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (True, False)]
    assert sizes[0] < 0.75 * sizes[1]
    signal = torch.randn(1, 3000)
    with torch.inference_mode():
        half = checkpoint.load(tmp_path / "True.safetensors")[0](signal)
        assert (half - tiny_model(signal)).norm() / tiny_model(signal).norm() < 1e-2


def change_header(path, **values):
    header = checkpoint_header(path) | values
    save_file(load_file(path), path, metadata={"fastenh": json.dumps(header)})


def checkpoint_header(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["fastenh"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a readable checkpoint"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x55"), "damaged"),
        (lambda p: p.write_bytes(b""), "not a readable checkpoint"),
        (lambda p: p.write_text("RIFF nonsense"), "not a readable checkpoint"),
        (lambda p: p.unlink(), "no such checkpoint"),
        (lambda p: save_file({"x": torch.zeros(2)}, p), "not one that fastenh wrote"),
        (lambda p: change_header(p, format=99), "reads format 1"),
        (lambda p: change_header(p, model="crn", config={}), "not the tensors of crn"),
        (lambda p: change_header(p, config=vars(TINY_DPT) | {"channels": 32}), "has the shape"),
        (lambda p: change_header(p, config={"colour": "red"}), "no setting 'colour'"),
        (lambda p: change_header(p, model="wavenet"), "no model named 'wavenet'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tiny_checkpoint, damage, message):
    damage(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tiny_checkpoint)
    assert str(tiny_checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(CheckpointError, match="no shipped weights for 'nobody'"):
        checkpoint.load("nobody")
