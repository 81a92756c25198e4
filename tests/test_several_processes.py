"""Two gloo processes get what one process gets with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import noise, voice
from torch import nn

from fastenh.cli import main as fastenh
from fastenh.data.feed import Share
from fastenh.models import checkpoint
from fastenh.models.batch_norm import JointBatchNorm2d, join_batch_norms, moments_of_all
from fastenh.models.registry import build, make_config
from fastenh.train.losses import EnhancementLoss, LossConfig
from fastenh.train.ranks import average_gradients, joined

TINY = {
    "dpt": {"channels": 16, "front_channels": 4, "head_channels": 8, "heads": 2, "feed_forward": 32, "blocks": 1},
    "crn": {"channels": [4, 8, 8], "decoder_channels": [8, 4, 4], "recurrent_layers": 1},
    "stft_transformer": {"channels": [4, 8, 16], "heads": 2, "feed_forward": 16, "layers": 1},
}


def step(name, noisy, clean, share):
    """Loss, gradients and buffers of one step in float64, on this process's share of the batch."""
    torch.manual_seed(0)
    model = build(name, make_config(name, TINY[name] | {"dropout": 0.0})).double().train()
    if share.ranks > 1:
        join_batch_norms(model)
    chosen = list(share.of(range(len(noisy))))
    loss = EnhancementLoss(LossConfig(log_magnitude=1.0)).double()(model(noisy[chosen]), clean[chosen], noisy[chosen])
    loss.backward()
    loss = average_gradients(list(model.parameters()), loss.detach())
    grads = {f"gradient of {k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss, **grads, **dict(model.named_buffers())}


def batch():
    generator = torch.Generator().manual_seed(1)
    levels = torch.tensor([1.0, 3.0, 0.1, 2.0])[:, None]
    noisy, clean = torch.randn(2, 4, 4000, generator=generator, dtype=torch.float64) * levels
    clean[1] = 0  # noise alone, in one of the processes
    return noisy, clean


def main(out):
    """What each process runs."""
    with joined(torch.device("cpu")) as (share, _):
        results = {name: step(name, *batch(), share) for name in TINY}
        if share.rank == 0:
            torch.save(results, out)


def in_two_processes(*program):
    root = str(Path(__file__).resolve().parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, *map(str, program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path):
    in_two_processes(__file__, tmp_path / "results.pt")
    results = torch.load(tmp_path / "results.pt")
    for name in TINY:
        alone, together = step(name, *batch(), Share()), results[name]
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            difference, size = (together[key] - value).double().norm(), value.double().norm()
            error = difference / size.clamp_min(1e-6)  # the gradient of a bias before a batch norm is 0
            assert error < 1e-6, (name, key, error)


@pytest.mark.slow
def test_training_with_torchrun_is_training_in_one_process(data, tmp_path):
    settings = [
        *(f"config.{key}={value}" for key, value in TINY["dpt"].items()), "config.dropout=0", "data.seconds=0.5",
        "data.batch_size=4", "run.steps_per_epoch=3", "run.epochs=2", "run.validation_pairs=2", "run.scored_pairs=0",
        "schedule.warmup_epochs=0.5", "schedule.decay_epochs=1", "run.ema=0.5", "run.precision=float32",
        "mixing.codec=0",  # rounds, and so takes the last digits for more than they are
        # a bias before a batch norm has rounding errors for a gradient, and Adam makes whole steps of it: small ones
        "optimiser.learning_rate=1e-4",
    ]  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    folders = ["--clean", str(data / "speech"), "--noise", str(data / "noise"), "--device", "cpu"]
    command = ["train", "dpt-mix", *folders, *sets, "-o"]
    alone = CliRunner().invoke(fastenh, [*command, str(tmp_path / "1")])
    assert alone.exit_code == 0, alone.output
    assert in_two_processes("-m", "fastenh", *command, tmp_path / "2").count("finished at step 6") == 1
    logs = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in "12"]
    epochs = [[event for event in log if event["kind"] == "epoch"] for log in logs]
    assert [len(log) for log in epochs] == [2, 2]
    for one, two in zip(*epochs, strict=True):
        assert two["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-3)
    one, two = (checkpoint.load(tmp_path / n / "last.safetensors")[0] for n in "12")
    with torch.inference_mode():
        signal = torch.from_numpy(voice(16_000) + noise(16_000))[None]
        assert (two(signal) - one(signal)).norm() / one(signal).norm() < 1e-2


def test_joint_batch_norm_alone_is_batch_norm():
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(5).double()
    nn.init.normal_(theirs.weight)
    ours = nn.BatchNorm2d(5).double()
    ours.load_state_dict(theirs.state_dict())
    join_batch_norms(nn.Sequential(ours))
    assert type(ours) is JointBatchNorm2d
    x = (3 + 2 * torch.randn(4, 5, 6, 7, dtype=torch.float64)).requires_grad_()
    for training in (True, False):
        results = []
        for norm in (theirs.train(training), ours.train(training)):
            out = norm(x)
            results.append((out, *torch.autograd.grad(out.square().sum(), [x, norm.weight, norm.bias])))
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert moments_of_all(x, x) == (x, x)


def test_processes_without_devices_are_refused(monkeypatch, tmp_path):
    for key, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("fastenh.cli.train.pick_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = CliRunner().invoke(
        fastenh, ["train", "dpt-mix", "-o", str(tmp_path / "run"), "--clean", "x", "--noise", "y"]
    )
    assert result.exit_code == 2
    assert "a process for each device" in result.output
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    main(sys.argv[1])
