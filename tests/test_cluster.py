"""The job on a local Ray: what one process makes, with workers, nodes and the whole job killed meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import soundfile
from click.testing import CliRunner
from conftest import noise, voice

from fastenh.cli import main as fastenh
from fastenh.enhance import cluster, manifest

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install -e '.[ray]'")
pytest.importorskip("ray.data", reason="needs the extra ray: pip install -e '.[ray]'")

pytestmark = pytest.mark.slow
FILES = 10
SHORT = ["--span-seconds", "0.2", "--context-seconds", "0.2", "--dtype", "float32"]  # many windows


@pytest.fixture(scope="module")
def two_slots():
    """A Ray of this process, which the commands then use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))  # noqa: PTH120 (the workers below are of this module)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
        yield
        ray.shutdown()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    for index in range(FILES):
        samples = voice(48_000 + 1000 * index, index) + noise(48_000 + 1000 * index, index)
        soundfile.write(root / ("deep" if index % 2 else ".") / f"{index}.wav", samples, 16_000)
    return root


@pytest.fixture
def run(tiny_checkpoint):
    def run(*arguments, code=0):
        result = CliRunner().invoke(fastenh, ["enhance", *map(str, arguments), "--model", str(tiny_checkpoint), *SHORT])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    return run


@pytest.fixture
def whole(run, folder, tmp_path):
    """What one process makes."""
    run(folder, "-o", tmp_path / "whole", "--threads", "1", "--report", tmp_path / "whole.json")
    return finished(tmp_path / "whole")


def finished(out):
    """Content of the files with a final name."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not path.name.startswith(".")}


def temporary(out):
    return [path.name for path in out.rglob(".fastenh-*") if path.name != manifest.NAME]


class DiesOnce(cluster._Worker):
    """Is killed when its first file is under way, if no other worker was before."""

    def __call__(self, row):
        root = next(iter(self._work.manifests))
        threading.Thread(target=self._die, args=(root,), daemon=True).start()
        return super().__call__(row)

    def _die(self, out):
        while not list(out.rglob(".fastenh-part-*")):
            time.sleep(0.001)
        try:
            (out.parent / "killed").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class DiesBeforeItTells(cluster._Worker):
    """Finishes a file and is killed before anybody knows."""

    def __call__(self, row):
        told = super().__call__(row)
        out = next(iter(self._work.manifests))
        try:
            (out.parent / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        return told


class DiesOfOne(cluster._Worker):
    """A file that no worker survives."""

    def _attempt(self, number, task):
        if number == 0:
            self._work.attempt = lambda task: os.kill(os.getpid(), signal.SIGKILL)
        return super()._attempt(number, task)


def records(path):
    """The files of a report, without what differs from run to run."""
    files = json.loads(path.read_text())["files"]
    return [
        {key: value for key, value in file.items() if key in ("source", "status", "audio_seconds", "warnings")}
        for file in files
    ]


@pytest.mark.parametrize("worker", [DiesOnce, DiesBeforeItTells])
def test_a_worker_is_killed_and_every_output_is_there(two_slots, run, folder, whole, tmp_path, monkeypatch, worker):
    monkeypatch.setattr(cluster, "_Worker", worker)
    out = tmp_path / "out"
    words = run(folder, "-o", out, "--engine", "ray", "--workers", "2", "--report", tmp_path / "report.json")
    assert (tmp_path / "killed").exists()
    assert f"{FILES} files enhanced" in words
    assert finished(out) == whole
    assert records(tmp_path / "report.json") == records(tmp_path / "whole.json")
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["engine"] == "ray"
    monkeypatch.undo()
    assert f"{FILES} skipped" in run(folder, "-o", out)  # the same manifest
    assert not temporary(out)


def test_a_file_that_kills_every_worker_fails_and_the_others_are_done(
    two_slots, run, folder, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster, "_Worker", DiesOfOne)
    words = run(folder, "-o", tmp_path / "out", "--engine", "ray", "--jobs", "1", code=1)
    assert f"{folder}/0.wav: 3 workers were lost at it" in words
    assert f"{FILES - 1} files enhanced, 1 failed" in words
    assert finished(tmp_path / "out") == {name: content for name, content in whole.items() if name != "0.wav"}


def test_exit_codes_and_words_are_those_of_one_process(two_slots, run, folder, tmp_path):
    (folder / "bad.wav").write_text("text")
    words = [run(folder, "-o", tmp_path / name, "--engine", name, "-q", code=1) for name in ("local", "ray")]
    assert words[0] == words[1]
    for words in (run(folder, "--engine", "ray", "--dry-run", "-q", code=1), run(folder, "--dry-run", "-q", code=1)):
        assert words.count("error: ") == 1
    assert "no GPU" in run(folder, "--engine", "ray", "--device", "cuda", code=2)
    assert "--device cuda:1: " in run(folder, "--engine", "ray", "--device", "cuda:1", code=2)
    assert "has no 64 processors" in run(folder, "--engine", "ray", "--threads", "64", code=2)
    assert "need --engine ray" in run(folder, "--workers", "2", code=2)
    missing = CliRunner().invoke(fastenh, ["enhance", str(folder), "--engine", "ray", "--model", "no-such"])
    assert (missing.exit_code, "Traceback" in missing.output) == (1, False)


def start(*arguments):
    command = [sys.executable, "-m", "fastenh", "enhance", *map(str, arguments), *SHORT]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_with_the_window_at_hand(run, folder, whole, tmp_path, tiny_checkpoint, stop):
    """Ctrl-C goes to all processes of a terminal, SIGTERM to the one that is named."""
    out = tmp_path / "out"
    job = start(folder, "-o", out, "--model", tiny_checkpoint, "--engine", "ray", "--workers", "2")
    while not out.exists() or not finished(out):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.01)
    (os.killpg if stop == signal.SIGINT else os.kill)(job.pid, stop)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1, said
    assert "Traceback" not in said
    left = finished(out)
    assert f"stopped with {FILES - len(left)} files left; give the same command again to resume" in said
    assert all(whole[name] == content for name, content in left.items())
    assert not temporary(out)
    assert f"{len(left)} skipped" in run(folder, "-o", out)
    assert finished(out) == whole


def test_no_cluster_is_one_line(folder, tiny_checkpoint):
    job = start(folder, "--model", tiny_checkpoint, "--engine", "ray", "--address", "127.0.0.1:1")
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1, said
    assert "Error: no Ray cluster at 127.0.0.1:1: " in said
    assert "Traceback" not in said
