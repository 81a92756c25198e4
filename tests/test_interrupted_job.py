"""A job that is stopped at any moment: nothing half-written has a final name, and the next run completes it."""

import random
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from click.testing import CliRunner
from conftest import noise, voice

from fastenh.cli import main
from fastenh.enhance import manifest

FILES = 12


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for index in range(FILES):
        samples = voice(24_000 + 500 * index, index) + noise(24_000 + 500 * index, index)
        soundfile.write(root / f"{index}.{'wav' if index % 2 else 'flac'}", samples, 16_000)
    return root


def arguments(folder, out, checkpoint):
    options = ["--jobs", "2", "--threads", "1", "--span-seconds", "0.2", "--context-seconds", "0.2"]  # many windows
    return ["enhance", str(folder), "-o", str(out), "--model", str(checkpoint), *options]


def start(*paths):
    command = [sys.executable, "-m", "fastenh", *arguments(*paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_undisturbed(*paths):
    """In this process, which has loaded torch already."""
    result = CliRunner().invoke(main, arguments(*paths))
    assert result.exit_code == 0, result.output


def until_it_writes(job, out):
    """Python has loaded, and the first file is under way."""
    while not out.exists() and job.poll() is None:
        time.sleep(0.005)


def finished(out):
    """Content of the files with a final name."""
    if not out.exists():
        return {}
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def run_and_check(folder, tmp_path, checkpoint, moments):
    undisturbed = tmp_path / "undisturbed"
    began = time.monotonic()
    run_undisturbed(folder, undisturbed, checkpoint)
    whole, lasts = finished(undisturbed), time.monotonic() - began
    assert len(whole) == FILES
    partial = 0
    for number, moment in enumerate(moments):
        out = tmp_path / f"out{number}"
        job = start(folder, out, checkpoint)
        until_it_writes(job, out)
        time.sleep(moment * lasts)
        stop = signal.SIGKILL if number % 2 else signal.SIGINT
        job.send_signal(stop)
        _, said = job.communicate(timeout=60)
        assert "Traceback" not in said
        left = finished(out)
        assert all(whole[name] == content for name, content in left.items())
        if stop == signal.SIGINT and out.exists():
            assert [path.name for path in out.iterdir() if path.name.startswith(".")] in ([], [manifest.NAME])
        partial += 0 < len(left) < FILES
        print(f"{stop.name} at {moment:.2f} of the work: {len(left)} of {FILES} files finished")
        run_undisturbed(folder, out, checkpoint)
        assert finished(out) == whole
    return partial


def test_stopped_in_the_middle(folder, tmp_path, tiny_checkpoint):
    run_and_check(folder, tmp_path, tiny_checkpoint, [0.3, 0.6])


@pytest.mark.slow
def test_stopped_at_twenty_moments(folder, tmp_path, tiny_checkpoint):
    draw = random.Random(0)
    moments = [draw.uniform(0.0, 0.9) for _ in range(20)]
    assert run_and_check(folder, tmp_path, tiny_checkpoint, moments) >= 5
