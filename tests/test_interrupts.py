"""Ctrl-C, SIGTERM, and several processes on one output folder. The model is slow, so that there is a middle."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import voice

from fastenh.enhance import manifest

FILES = 12
WINDOW = 0.1  # seconds that the model takes for one
SLOW = """
import time
from fastenh.cli import main
from fastenh.enhance.enhancer import Enhancer
run = Enhancer.run
Enhancer.run = lambda self, windows: (time.sleep({window}), run(self, windows))[1]
main(prog_name="fastenh")
"""
HOLD = """
import sys, time
from pathlib import Path
from fastenh.enhance.manifest import FileManifest
with FileManifest(Path(sys.argv[1]), {}).claim(Path(sys.argv[2])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for index in range(FILES):
        soundfile.write(root / f"{index:02}.wav", voice(16_000, index), 16_000)
    return root


@pytest.fixture
def start(folder, tmp_path, tiny_checkpoint):
    """Starts a job of the folder; it is at work when ``out`` has something in it."""
    started = []

    def call(*options, window=WINDOW, source=folder):
        arguments = ["enhance", source, "-o", tmp_path / "out", "--model", tiny_checkpoint, "--threads", 1, *options]
        command = [sys.executable, "-c", SLOW.format(window=window), *map(str, arguments)]
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(job)
        return job

    yield call
    for job in started:
        job.kill()
        job.wait()


def until_it_writes(out, job):
    while not (out.exists() and list(out.glob(".fastenh-part-*"))):
        assert job.poll() is None, job.communicate()
        time.sleep(0.005)


def left(out):
    return sorted(path.name for path in out.iterdir() if path.name != manifest.NAME)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_with_the_window_at_hand(start, tmp_path, number):
    job, out, report = start("--report", tmp_path / "r.json", window=0.5), tmp_path / "out", tmp_path / "r.json"
    until_it_writes(out, job)
    time.sleep(0.7)
    job.send_signal(number)
    began = time.monotonic()
    _, said = job.communicate(timeout=30)
    assert time.monotonic() - began < 2.5
    assert job.returncode == 1
    assert "files left; give the same command again to resume" in said
    assert "Traceback" not in said
    assert not any(name.startswith(".") for name in left(out))
    done = len(left(out))
    assert 0 < done < FILES
    assert json.loads(report.read_text())["summary"]["enhanced"] == done


def test_one_signal_does_not_wait_for_the_windows_of_all_channels(start, tmp_path):
    soundfile.write(tmp_path / "in" / "many.wav", np.stack([voice(160_000)] * 16, 1), 16_000)
    job, out = start(window=0.4, source=tmp_path / "in" / "many.wav"), tmp_path / "out"
    until_it_writes(out, job)
    time.sleep(1)
    job.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = job.communicate(timeout=30)
    assert time.monotonic() - began < 2.4
    assert "stopped with 1 files left" in said
    assert left(out) == []


@pytest.mark.parametrize(
    ("number", "wait"),
    [
        (signal.SIGINT, 0),
        (signal.SIGTERM, 0.5),
        pytest.param(signal.SIGINT, 0.5, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
    ],
)
def test_more_signals_end_it_at_once(start, tmp_path, number, wait):
    job, out = start(window=20), tmp_path / "out"
    until_it_writes(out, job)
    time.sleep(wait)  # 0: it is over at once, and the other signals come as the process ends
    began = time.monotonic()
    for _ in range(3):
        if job.poll() is None:
            job.send_signal(number)
        time.sleep(0.2)
    _, said = job.communicate(timeout=30)
    assert time.monotonic() - began < 3
    assert job.returncode == 1 or (wait == 0 and job.returncode == -number)  # Python has let go of signals by then
    assert "terminate" not in said
    assert left(out) == []


@pytest.mark.slow
def test_four_processes_share_a_folder_and_one_is_killed(start, folder, tmp_path):
    """Every file once, none lost: the others make what the dead one was at work on."""
    out = tmp_path / "out"
    jobs = [start("--jobs", 1, "-v", window=0.3) for _ in range(4)]
    until_it_writes(out, jobs[0])
    time.sleep(0.5)
    jobs[0].send_signal(signal.SIGKILL)
    said = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [-signal.SIGKILL, 0, 0, 0]
    assert [name for name in left(out) if not name.startswith(".")] == sorted(path.name for path in folder.iterdir())
    lines = [json.loads(line)["target"] for line in (out / manifest.NAME).read_text().splitlines()]
    assert sorted(lines) == sorted(path.name for path in folder.iterdir())
    assert sum(text.count(": enhanced") > 0 for text in said) >= 3
    assert "skipped" in start(window=0).communicate(timeout=60)[1]


@pytest.mark.slow
def test_processes_do_not_repeat_what_settings_made_stale(start, folder, tmp_path):
    out = tmp_path / "out"
    assert start(window=0).wait(60) == 0
    jobs = [start("--jobs", 1, "--atten-lim", 6, window=0.1) for _ in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
    lines = [json.loads(line) for line in (out / manifest.NAME).read_text().splitlines()]
    assert len(lines) == 2 * FILES
    assert sorted(line["target"] for line in lines[FILES:]) == sorted(path.name for path in folder.iterdir())


def test_a_claim_is_of_one_process_at_a_time_and_ends_with_it(tmp_path):
    target = tmp_path / "a.wav"
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(target)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    ours = manifest.FileManifest(tmp_path, {})
    with ours.claim(target) as mine, ours.claim(Path(tmp_path, "b.wav")) as free:
        assert (mine, free) == (False, True)
    other.kill()
    other.communicate()
    with ours.claim(target) as mine:
        assert mine
    ours.close()
