"""The state of a run on disk: one file with all that a resumed run needs, replaced atomically."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from fastenh.atomic import replacing
from fastenh.errors import ProcessingError

STATE = "state.pt"


class RunError(ProcessingError, ValueError):
    """A run folder that cannot be used as asked."""


def save_state(folder: Path, state: dict[str, Any]) -> None:
    with replacing(folder / STATE, mode=0o600) as temporary, temporary.open("wb") as file:
        torch.save(state, file)  # by name, torch refuses one that begins with a dot


def load_state(folder: Path) -> dict[str, Any]:
    """Load the state of a run. Raises ``RunError`` where there is none, or it is damaged."""
    path = folder / STATE
    if not path.is_file():
        raise RunError(f"{folder}: nothing to resume, there is no {STATE}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise RunError(f"{path}: damaged, cannot be resumed ({str(error).splitlines()[0]})") from error


def holds_run(folder: Path) -> bool:
    return (folder / STATE).exists()


def claim(folder: Path, resume: bool) -> None:
    """Make the run folder. Raises ``RunError`` where it holds a run that would be overwritten."""
    if not resume and holds_run(folder):
        raise RunError(f"{folder}: holds a run; give --resume to continue it, or another -o")
    if resume and not holds_run(folder):
        raise RunError(f"{folder}: nothing to resume, there is no {STATE}")
    folder.mkdir(parents=True, exist_ok=True)
