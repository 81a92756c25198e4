"""Training on two nodes that meet at an address of this machine, while a process of one of them is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from fastenh.cli import main as fastenh

EPOCHS, STEPS = 12, 2
TINY = [
    "config.channels=16", "config.front_channels=4", "config.head_channels=8", "config.heads=2", "config.blocks=1",
    "config.feed_forward=32", "config.dropout=0", "data.seconds=0.5", "data.batch_size=4", "run.validation_pairs=2",
    f"run.steps_per_epoch={STEPS}", f"run.epochs={EPOCHS}", "run.scored_pairs=0", "schedule.warmup_epochs=0.5",
    "schedule.decay_epochs=1", "run.ema=0.5", "run.precision=float32", "mixing.codec=0",
    "optimiser.learning_rate=1e-4",
]  # fmt: skip


@pytest.fixture
def node(data, tmp_path):
    """Starts a node: torchrun with one process; both find each other at the same port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = []

    def start(folder):
        run = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-id", "test"]
        run += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
        sets = [part for setting in TINY for part in ("--set", setting)]
        train = ["train", "dpt-mix", "--clean", data / "speech", "--noise", data / "noise", "--device", "cpu", *sets]
        command = ["-m", "torch.distributed.run", *run, "-m", "fastenh", *train, "-o", folder, "--resume-or-start"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (tmp_path / f"node{len(nodes)}.log").open("w") as log:
            job = subprocess.Popen(
                [sys.executable, *map(str, command)], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        nodes.append(job)
        return job

    yield start
    for job in nodes:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def worker_of(node):
    """The process of fastenh that a node has started."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    return next(int(pid) for pid in children if b"fastenh" in Path(f"/proc/{pid}/cmdline").read_bytes())


def until_epoch(folder, number, nodes):
    log, until = folder / "log.jsonl", time.monotonic() + 200
    while not log.exists() or log.read_text().count('"kind": "epoch"') < number:
        assert time.monotonic() < until
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.02)


@pytest.fixture
def undisturbed(node, tmp_path):
    both = [node(tmp_path / "undisturbed") for _ in range(2)]
    assert [job.wait(timeout=300) for job in both] == [0, 0]
    return load_file(tmp_path / "undisturbed" / "last.safetensors")


@pytest.mark.slow
@pytest.mark.linux
def test_a_lost_process_is_started_again_and_the_run_ends_as_if_nothing_was(node, tmp_path, undisturbed):
    folder = tmp_path / "run"
    first = node(folder)
    time.sleep(1)  # it makes the place where they meet
    second = node(folder)
    until_epoch(folder, 3, (first, second))
    os.kill(worker_of(second), signal.SIGKILL)
    assert [job.wait(timeout=300) for job in (first, second)] == [0, 0]
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [event["epoch"] for event in events if event["kind"] == "epoch"]
    assert sorted(set(epochs)) == list(range(1, EPOCHS + 1))
    said = "".join(path.read_text() for path in tmp_path.glob("node*.log"))
    assert f"finished at step {EPOCHS * STEPS}" in said
    assert "steps, from step" in said  # it went on, and did not begin again
    ended = load_file(folder / "last.safetensors")
    assert ended.keys() == undisturbed.keys()
    for name, tensor in ended.items():
        torch.testing.assert_close(tensor, undisturbed[name], rtol=1e-5, atol=1e-6, msg=name)


def test_resume_or_start_alone(data, tmp_path):
    sets = [part for setting in (*TINY, "run.epochs=2") for part in ("--set", setting)]
    train = [
        "train",
        "dpt-mix",
        "--clean",
        str(data / "speech"),
        "--noise",
        str(data / "noise"),
        "--device",
        "cpu",
        *sets,
    ]
    command = [*train, "-o", str(tmp_path / "run"), "--resume-or-start"]
    said = [CliRunner().invoke(fastenh, command) for _ in range(2)]
    assert [result.exit_code for result in said] == [0, 0], said
    assert "from step" not in said[0].output
    assert "from step 4" in said[1].output
