"""Write a notebook that trains on a hosted GPU: clone, install, unpack, train within a time limit, evaluate, draw.

    python scripts/build_notebook.py REPOSITORY -o train.ipynb

REPOSITORY is what git can clone from there. The first cell holds all that is to be set. Run again, in a session that
kept its files, the notebook goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SETTINGS = """
REPOSITORY = {repository!r}
ARCHIVES = ["librispeech-noise.zip"]  # pairs of equal names, in folders that are named below, however deep
TRAIN, TEST = "train", "test"         # in the path of the pairs to learn from, and of those to judge on
NOISY, CLEAN = "noisy", "clean"       # the folders with the two sides of the pairs
RECIPE = "dpt"                        # or crn, dpt_complex, mel_transformer, stft_transformer
MINUTES = 200                         # of training in this session
CHANGES = []                          # of the recipe: ["run.epochs=30", "data.batch_size=16"]
DATA, RUN = "data", "run"             # folders; keep RUN to go on in another session
"""

RUN = """
import subprocess
import sys


def run(*command):
    \"\"\"Run a program, and show what it prints.\"\"\"
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        print(line, end="")
    if process.wait():
        raise RuntimeError(f"{command[0]} failed; the lines above say why")


def fastenh(*command):
    run(sys.executable, "-m", "fastenh", *command)
"""

INSTALL = """
from importlib import metadata
from pathlib import Path

clone = "fastenh-clone"  # a folder named like the package would be taken for it
if not Path(clone).exists():
    run("git", "clone", "--depth", "1", REPOSITORY, clone)
host = {found.name.lower(): found.version for found in metadata.distributions()}
kept = [f"{name}=={host[name]}" for name in ("torch", "triton", "numpy", "scipy", "matplotlib") if name in host]
Path("host.txt").write_text("\\n".join(kept))
run(sys.executable, "-m", "pip", "install", "--quiet", "-c", "host.txt", "-e", f"{clone}[metrics,plots]")
"""

UNPACK = """
from pathlib import Path

if not Path(DATA).exists():
    fastenh("data", "prepare", *ARCHIVES, "-o", DATA)


def pairs(part):
    \"\"\"The noisy and the clean folder of TRAIN or TEST.\"\"\"
    found = []
    for side in (NOISY, CLEAN):
        folders = [path for path in Path(DATA).rglob(side) if path.is_dir() and part in path.parts]
        if len(folders) != 1:
            raise RuntimeError(f"{DATA}: one folder {side!r} below {part!r} is needed, there are {len(folders)}")
        found += folders
    return found
"""

TRAIN = """
noisy, clean = pairs(TRAIN)
options = [word for change in CHANGES for word in ("--set", change)]
if Path(RUN, "state.pt").exists():
    options.append("--resume")
fastenh("train", RECIPE, "-o", RUN, "--noisy", noisy, "--clean", clean, "--max-minutes", MINUTES, *options)
"""

EVALUATE = """
noisy, clean = pairs(TEST)
weights = f"{RUN}/best.safetensors"
fastenh("evaluate", noisy, clean, "--model", weights, "--out", "results.json")
"""

DRAW = """
from IPython.display import Image, display

first = sorted(path for path in noisy.rglob("*") if path.is_file())[0]
reference = clean / first.relative_to(noisy)
enhanced = Path("enhanced", first.name)
fastenh("enhance", first, "-o", enhanced, "--model", weights, "--overwrite")
fastenh("plot", "training", f"{RUN}/log.jsonl", "-o", "training.png")
fastenh("plot", "spectrogram", first, enhanced, reference, "--title", "noisy", "--title", "enhanced",
        "--title", "clean", "-o", "spectrograms.png")
for picture in ("training.png", "spectrograms.png"):
    display(Image(picture))
"""

CELLS = (
    ("", "# Train a speech enhancer\n\nSet what the next cell holds, and run all cells."),
    ("settings", SETTINGS),
    ("", RUN),
    ("", "## Install\n\nThe host keeps its own PyTorch."),
    ("install", INSTALL),
    ("", "## Unpack the pairs"),
    ("unpack", UNPACK),
    ("", "## Train\n\nIt saves and stops when its minutes are over; run the cell again to go on."),
    ("train", TRAIN),
    ("", "## Judge on the pairs that were kept apart"),
    ("evaluate", EVALUATE),
    ("", "## Look at it"),
    ("draw", DRAW),
)


def notebook(repository: str) -> dict[str, Any]:
    """In Jupyter's format 4.5; each cell of code has a tag but the one with the helpers."""
    cells = [_cell(number, tag, text.strip()) for number, (tag, text) in enumerate(CELLS)]
    cells[1]["source"] = cells[1]["source"].format(repository=repository)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "accelerator": "GPU"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


def _cell(number: int, tag: str, text: str) -> dict[str, Any]:
    cell = {"id": f"cell-{number}", "metadata": {"tags": [tag]} if tag else {}, "source": text}
    if text.startswith("#"):
        return {**cell, "cell_type": "markdown"}
    return {**cell, "cell_type": "code", "execution_count": None, "outputs": []}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.write_text(json.dumps(notebook(given.repository), indent=1) + "\n", encoding="utf-8")
