"""The package on a system without Triton and without the modules and functions of POSIX, as Windows and macOS are.

What is missing there is hidden here, in the process of each command and in the children it starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import SAMPLES

from fastenh.cli import main

MODULES = ("triton", "fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty", "readline", "spwd", "nis")
FUNCTIONS = [
    "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fchown", "fork", "forkpty", "getgid", "getgroups", "getloadavg",
    "getpgid", "getpgrp", "getuid", "geteuid", "killpg", "lchown", "mkfifo", "mknod", "nice", "openpty",
    "posix_fadvise", "posix_fallocate", "pread", "pwrite", "sched_getaffinity", "sched_setaffinity", "setsid",
    "setuid", "statvfs", "sysconf",
]  # fmt: skip
SIGNALS = ["SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"]
HIDING = f"""
import importlib.abc, os, signal, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MODULES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

for name in {MODULES!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
for module, names in ((os, {FUNCTIONS!r}), (signal, {SIGNALS!r})):
    for name in names:
        vars(module).pop(name, None)
"""
MISSING = f"""
import importlib, os, signal
assert not [name for name in {FUNCTIONS!r} if hasattr(os, name)]
assert not [name for name in {SIGNALS!r} if hasattr(signal, name)]
for name in {MODULES!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
"""
EVERY_MODULE = """
import importlib, pkgutil, fastenh, fastenh_kernels
kernels = []
for package in (fastenh, fastenh_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__") or module.name == "fastenh.demo.page":  # gradio takes what there is
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name == "triton", (module.name, error.name)
            kernels.append(module.name)
print(*kernels)
"""
INFO = """
from fastenh.cli import main
main(["info"])
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Runs Python with the arguments given, the modules and functions hidden; returns what it wrote."""
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(HIDING)
    packages = [path for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(hiding), *packages]), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_module_is_imported_but_for_the_kernels(elsewhere):
    kernels, _, info = elsewhere("-c", MISSING + EVERY_MODULE + INFO).partition("\n")
    assert kernels
    assert all(name.startswith(("fastenh_kernels.operations.", "fastenh_kernels.shared.")) for name in kernels.split())
    assert "backend on cpu: cpu" in info


def test_a_sample_is_enhanced_as_anywhere(elsewhere, tmp_path):
    source = SAMPLES / "french-hum.wav"
    elsewhere("-m", "fastenh", "enhance", source, "-o", tmp_path / "hidden")
    assert CliRunner().invoke(main, ["enhance", str(source), "-o", str(tmp_path / "all")]).exit_code == 0
    hidden, usual = (soundfile.read(tmp_path / folder / source.name)[0] for folder in ("hidden", "all"))
    np.testing.assert_array_equal(hidden, usual)


@pytest.mark.slow
def test_training_and_evaluation(elsewhere, data, tmp_path):
    tiny = ["channels=16", "front_channels=4", "head_channels=8", "heads=2", "feed_forward=32", "blocks=1"]
    short = ["data.seconds=0.5", "data.batch_size=1", "run.epochs=1", "run.steps_per_epoch=2"]
    settings = [f"--set={text}" for text in [*(f"config.{text}" for text in tiny), *short]]
    corpora = ["--clean", data / "speech", "--noise", data / "noise"]
    elsewhere("-m", "fastenh", "train", "dpt-mix", "-o", tmp_path / "run", *corpora, *settings)
    model = tmp_path / "run" / "last.safetensors"
    noisy, clean = data / "speech", data / "speech"
    said = elsewhere("-m", "fastenh", "evaluate", noisy, clean, "--model", model, "--jobs", "2")
    assert "SI-SDR" in said
