"""What is released: an sdist, the wheel that is built from it, and the wheel installed where nothing else is."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import soundfile
from conftest import SAMPLES

from fastenh import __version__

pytestmark = pytest.mark.slow
ROOT = SAMPLES.parent
MOST_BYTES = 10_000_000
BESIDE = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in")


def run(*command: str | Path, cwd: Path) -> str:
    """In ``cwd``, nothing of this repository on the path; returns what the command wrote."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRITON_INTERPRET")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def environment_in(folder: Path) -> Path:
    """A virtual environment with nothing but pip; returns the folder of its programs."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the sdist, built from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "copy"
    for package in ("fastenh", "kernels"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in BESIDE:
        shutil.copy(ROOT / name, copy)
    programs = environment_in(folder / "builder")
    run(programs / "python", "-m", "pip", "install", "--quiet", "build", cwd=folder)
    run(programs / "python", "-m", "build", "--outdir", folder / "dist", copy, cwd=folder)  # the wheel from the sdist
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it depends on."""
    programs = environment_in(tmp_path_factory.mktemp("installed") / "venv")
    pinned = ROOT / "constraints.txt"
    run(programs / "python", "-m", "pip", "install", "--quiet", "-c", pinned, built[0], cwd=programs)
    return programs


def names(folder: Path, below: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(below).as_posix() for path in paths}


def test_the_wheel_holds_both_packages_whole_and_nothing_else(built):
    packages = names(ROOT / "fastenh", ROOT) | names(ROOT / "kernels" / "fastenh_kernels", ROOT / "kernels")
    with zipfile.ZipFile(built[0]) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == packages


def test_files_are_small_and_named_by_the_version(built):
    for path in built:
        assert path.stat().st_size < MOST_BYTES
        assert path.name.startswith(f"fastenh-{__version__}")


def test_the_sdist_holds_what_a_build_needs_and_no_test(built):
    with tarfile.open(built[1]) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(BESIDE) - {"MANIFEST.in"} <= inside
    assert not [name for name in inside if name.startswith("tests")]


def test_info_in_a_clean_environment(installed, tmp_path):
    said = run(installed / "fastenh", "info", cwd=tmp_path)
    assert said.startswith(f"fastenh {__version__},")
    assert "shipped weights: dpt, dpt_complex" in said
    assert "pesq not installed" in said


@pytest.mark.parametrize("name", ["french-hum.wav", "spanish-clicks.ogg"])
def test_a_sample_is_enhanced_in_a_clean_environment(installed, tmp_path, name):
    said = run(installed / "fastenh", "enhance", SAMPLES / name, "-o", tmp_path / "out", cwd=tmp_path)
    assert "1 files enhanced" in said
    given, made = soundfile.info(SAMPLES / name), soundfile.info(tmp_path / "out" / name)
    assert (made.frames, made.samplerate, made.channels) == (given.frames, given.samplerate, given.channels)
    before, after = soundfile.read(SAMPLES / name)[0], soundfile.read(tmp_path / "out" / name)[0]
    assert after.std() > 0
    assert (before != after).any()
