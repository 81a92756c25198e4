"""The notebook for a hosted GPU runs to its end on a little data, twice: begun, and gone on with."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile
from conftest import noise, voice

from fastenh.models import checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from build_notebook import notebook  # noqa: E402

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

LITTLE = [
    "config.channels=16", "config.front_channels=4", "config.head_channels=8", "config.feed_forward=32",
    "config.blocks=1", "data.seconds=0.5", "data.batch_size=2", "run.epochs=2", "run.validation_pairs=2",
    "run.scored_pairs=0",
]  # fmt: skip


@pytest.fixture
def archive(tmp_path):
    """Pairs of 2 s in an archive's own top folder."""
    path = tmp_path / "librispeech-noise.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for part, count in (("train", 6), ("test", 2)):
            for seed in range(count):
                clean = voice(32_000, seed)
                for side, samples in (("clean", clean), ("noisy", clean + noise(32_000, seed))):
                    soundfile.write(tmp_path / "x.wav", samples, 16_000)
                    packed.write(tmp_path / "x.wav", f"corpus/{part}/{side}/{seed}.wav")
    return path


def prepared(archive, repository="nowhere", without=("install",)):
    made = nbformat.from_dict(notebook(str(repository)))
    nbformat.validate(made)
    made.cells = [cell for cell in made.cells if not set(without) & set(cell.metadata.get("tags", []))]
    settings = next(cell for cell in made.cells if cell.metadata.get("tags") == ["settings"])
    settings.source += f"\nARCHIVES = [{str(archive)!r}]\nCHANGES = {LITTLE!r}\nMINUTES = 2"
    return made


def executed(made, folder, **options):
    client = nbclient.NotebookClient(made, timeout=600, resources={"metadata": {"path": str(folder)}}, **options)
    client.execute()
    return "".join(output.get("text", "") for cell in made.cells for output in cell.get("outputs", []))


def test_the_notebook_is_written_by_one_command(tmp_path):
    target = tmp_path / "train.ipynb"
    script = ROOT / "scripts" / "build_notebook.py"
    subprocess.run([sys.executable, script, "https://example.org/x.git", "-o", target], check=True)
    made = nbformat.read(target, as_version=4)
    nbformat.validate(made)
    assert "REPOSITORY = 'https://example.org/x.git'" in made.cells[1].source


@pytest.mark.slow
def test_the_notebook_trains_and_goes_on(archive, tmp_path):
    made = prepared(archive)
    words = executed(made, tmp_path)
    assert "SI-SDR" in words
    steps = checkpoint.read(tmp_path / "run" / "last.safetensors").training["steps"]
    pictures = [output for output in made.cells[-1].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    again = prepared(archive)
    again.cells[1].source = again.cells[1].source.replace("run.epochs=2", "run.epochs=3")
    executed(again, tmp_path)
    assert checkpoint.read(tmp_path / "run" / "last.safetensors").training["steps"] > steps


@pytest.mark.slow
def test_a_failing_command_stops_the_notebook(archive, tmp_path):
    archive.write_bytes(b"no archive")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="failed; the lines above say why"):
        executed(prepared(archive), tmp_path)


@pytest.mark.slow
def test_the_install_cell_keeps_the_packages_of_the_host(archive, tmp_path):
    """In an environment of its own that sees the packages of this one, from a clone; where a registry is at hand."""
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path / "x", "setuptools>=77"]
    if subprocess.run(fetch, capture_output=True, check=False).returncode:
        pytest.skip("no registry can be reached")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a git repository")
    repository, venv = tmp_path / "repository", tmp_path / "venv"
    for name in listed.splitlines():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository / name)
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    others = ("fastenh", "__editable__", "pip", "setuptools", "_distutils_hack", "distutils-precedence")
    for folder in map(Path, sys.path):
        if not folder.is_dir() or folder.is_relative_to(ROOT) or not list(folder.glob("*.dist-info")):
            continue
        for path in folder.iterdir():
            if not path.name.startswith(others) and not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    work = tmp_path / "work"
    work.mkdir()
    program = (
        "import sys, nbformat, nbclient\n"
        "made = nbformat.read('in.ipynb', 4)\n"
        "nbclient.NotebookClient(made, timeout=900).execute()\n"
        "nbformat.write(made, 'out.ipynb')\n"
    )
    made = prepared(archive, repository, without=("unpack", "train", "evaluate", "draw"))
    made.cells.append(
        nbformat.v4.new_code_cell("fastenh('info')\nrun(sys.executable, '-c', 'import fastenh; print(fastenh)')")
    )
    nbformat.write(made, work / "in.ipynb")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([venv / "bin" / "python", "-c", program], cwd=work, env=environment, check=True)
    words = str(nbformat.read(work / "out.ipynb", 4).cells[-1].outputs)
    assert str(work / "fastenh-clone" / "fastenh") in words  # the clone
    import torch

    assert f"torch {torch.__version__}" in words
    assert all(path.is_symlink() for path in site.glob("torch-*"))
