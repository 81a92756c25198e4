"""Live form from the command line: files as a stream, pipes with little delay, models that cannot, and quality."""

from __future__ import annotations

import io
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import noise, voice
from live_models import causal_checkpoint, causal_model

from benchmarks import live_hour
from fastenh import Enhancer
from fastenh.audio import pipes
from fastenh.cli import main
from fastenh.enhance import pipe


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return causal_checkpoint(tmp_path_factory.mktemp("weights"))


def call(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("options", [["--live"], []])
def test_a_causal_model_runs_over_files_as_a_stream(weights, tmp_path, options):
    """Over several windows' length; the whole recording in one pass says what it must be."""
    signal = (voice(150_000) + noise(150_000)).astype(np.float32)
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", signal, 16_000, "FLOAT")
    call("enhance", tmp_path, "--model", weights, *options)
    with torch.inference_mode():
        expected = causal_model()(torch.from_numpy(signal)[None])[0].numpy()
    for name in ("a", "b", "c"):
        made, rate = soundfile.read(tmp_path.with_name(f"{tmp_path.name}-enhanced") / f"{name}.wav", dtype="float32")
        assert rate == 16_000
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


def test_the_report_says_that_it_ran_live(weights, tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(20_000), 48_000)
    call("enhance", tmp_path / "a.wav", "--model", weights, "--report", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["live"] is True
    assert soundfile.info(tmp_path / "a-enhanced.wav").frames == 20_000


@pytest.mark.parametrize("command", [["enhance", "a.wav"], ["enhance", "-", "-o", "-"], ["evaluate", ".", "."]])
def test_a_model_that_looks_ahead_is_refused_in_a_line(tiny_checkpoint, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", voice(2000), 16_000)
    lines = call(*command, "--model", tiny_checkpoint, "--live", code=1).splitlines()
    assert lines == ["Error: this model looks ahead and cannot run live; dpt_complex-live can"]


def test_evaluate_judges_a_causal_model_as_a_stream(weights, tmp_path):
    for folder, signal in (("noisy", voice(100_000) + noise(100_000)), ("clean", voice(100_000))):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "1.wav", signal, 16_000, "FLOAT")
    call("evaluate", tmp_path / "noisy", tmp_path / "clean", "--model", weights, "--live", "--out", tmp_path / "r.json",
         "--jobs", "1")  # fmt: skip
    assert "causal" in (tmp_path / "r.json").read_text()


def _ready(handle):
    return bool(select.select([handle], [], [], 0)[0])


@pytest.mark.linux
@pytest.mark.parametrize(("rate", "most"), [(16_000, 0.033), (48_000, 0.069)])
def test_how_far_a_pipe_is_behind(rate, most):
    """Once it is there, what has been written is out but for the delay, and a hop that waits for its end."""
    (source, given), (taken, target) = os.pipe(), os.pipe()
    enhancer = Enhancer(causal_model(), "cpu")
    thread = threading.Thread(target=pipe.run, args=(source, target, enhancer, pipes.Raw(rate, 1, "s16le")))
    thread.start()
    samples = (20_000 * voice(rate, rate=rate)).astype("<i2").tobytes()
    behind = []
    received = 0
    for begin in range(0, len(samples), rate // 50):  # 10 ms
        os.write(given, samples[begin : begin + rate // 50])
        done, deadline = begin + rate // 50, time.monotonic() + 5
        while done / 2 / rate - received / 2 / rate > most + 0.016 and time.monotonic() < deadline:
            received += len(os.read(taken, 1 << 16)) if _ready(taken) else time.sleep(0.001) or 0
        behind.append((done - received) / 2 / rate)
        if behind[-1] > most + 0.016:
            break
    os.close(given)
    thread.join(10)
    while _ready(taken):
        received += len(os.read(taken, 1 << 16))
    assert max(behind) <= most + 0.016, max(behind)
    assert received == len(samples)
    for handle in (source, taken, target):
        os.close(handle)


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_memory_is_flat_and_nothing_drifts(weights, rate):
    """``python -m benchmarks.live_hour`` does it for an hour."""
    rows = live_hour.run(300, rate, False, str(weights))
    assert len(rows) == 9
    assert {lag for _, _, lag in rows} == {0}
    assert rows[-1][1] < rows[1][1] + 10


def test_a_pipe_that_is_ahead_is_read_in_larger_blocks():
    (source, given) = os.pipe()
    os.write(given, bytes(40_000))
    with pipes.reading(source, pipes.Raw(16_000, 1, "s16le")) as reader:
        blocks = reader.blocks(0.016)
        first = next(blocks)
        os.close(given)
        sizes = [first.shape[1], *(block.shape[1] for block in blocks)]
    os.close(source)
    assert sum(sizes) == 20_000
    assert sizes[0] == (16_000 if pipes.fcntl else 256)


def test_the_command_from_pipe_to_pipe(weights, tmp_path):
    """While sound still comes, some has gone out; and it is what the file command makes."""
    signal = (voice(48_000) + noise(48_000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", signal, 16_000, "FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    line = [sys.executable, "-m", "fastenh", "enhance", "-", "-o", "-", "--live", "--model", str(weights)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        received = queue.Queue()

        def take():
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                received.put(piece)
            received.put(b"")

        thread = threading.Thread(target=take)
        thread.start()
        half = len(content) // 2
        process.stdin.write(content[:half])
        process.stdin.flush()
        pieces = [b""]
        while sum(map(len, pieces)) < half - 4 * 512:  # all but the delay, and nothing more was given
            pieces.append(received.get(timeout=60))
        process.stdin.write(content[half:])
        process.stdin.close()
        while piece := received.get(timeout=60):
            pieces.append(piece)
        thread.join()
    call("enhance", tmp_path / "a.wav", "--model", weights)
    made, _ = soundfile.read(io.BytesIO(b"".join(pieces)), dtype="float32")
    expected, _ = soundfile.read(tmp_path / "a-enhanced.wav", dtype="float32")
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)
