"""Checkpoints: one safetensors file that says itself which model it holds.

The header's ``fastenh`` entry is JSON: format version, model name, configuration, training summary and the SHA-256
of the tensors. One file can be replaced atomically; weights and a JSON beside them could not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastenh.atomic import replacing
from fastenh.errors import ProcessingError
from fastenh.models.frontend import SpectralModel
from fastenh.models.registry import ModelError, build, make_config

FORMAT = 1
SUFFIX = ".safetensors"


class CheckpointError(ProcessingError, ValueError):
    """A checkpoint that is missing, damaged, or of another model or version than it says."""


@dataclass(frozen=True)
class Checkpoint:
    name: str  # of the model in the registry
    config: Any
    training: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str


def save(path: Path, name: str, config: Any, model: SpectralModel, training: dict[str, Any], half: bool) -> None:
    """Write the weights atomically; ``half`` stores as fp16 what is within its range (a release)."""
    tensors = {key: _stored(value, half) for key, value in model.core.state_dict().items()}
    header = {
        "format": FORMAT,
        "model": name,
        "config": dataclasses.asdict(config),
        "training": training,
        "sha256": _digest(tensors),
    }
    with replacing(path, mode=0o644) as temporary:
        save_file(tensors, temporary, metadata={"fastenh": json.dumps(header)})


def load(source: str | Path) -> tuple[SpectralModel, Checkpoint]:
    """Load a model with its weights, by the name of one that is shipped or from a file.

    Raises ``CheckpointError`` with one line that names the file and what is wrong with it.
    """
    path = locate(source)
    checkpoint = read(path)
    model = build(checkpoint.name, checkpoint.config)
    expected = model.core.state_dict()
    missing, unknown = expected.keys() - checkpoint.tensors.keys(), checkpoint.tensors.keys() - expected.keys()
    if missing or unknown:
        kinds = (("missing", missing), ("unknown", unknown))
        found = "; ".join(f"{kind} {min(keys)} and {len(keys) - 1} more" for kind, keys in kinds if keys)
        raise CheckpointError(f"{path}: not the tensors of {checkpoint.name}: {found}")
    for key, tensor in checkpoint.tensors.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
            raise CheckpointError(f"{path}: tensor {key} has the shape {shapes}")
    model.core.load_state_dict(checkpoint.tensors)  # fp16 is widened to the module's fp32
    return model.eval(), checkpoint


def average(sources: Sequence[str | Path]) -> tuple[SpectralModel, Checkpoint]:
    """Return the mean of the floating-point tensors of several checkpoints; what counts is taken from the first.

    Raises ``CheckpointError`` where they are not of one model and configuration.
    """
    loaded = [load(source) for source in sources]
    model, first = loaded[0]
    for source, (_, other) in zip(sources[1:], loaded[1:], strict=True):
        if (other.name, other.config) != (first.name, first.config):
            raise CheckpointError(f"{source}: not of the model and configuration of {sources[0]}")
    states = [other.core.state_dict() for other, _ in loaded]
    mean = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        for key, value in states[0].items()
        if value.is_floating_point()
    }
    model.core.load_state_dict({**states[0], **mean})
    training = {"average_of": [{"sha256": other.sha256, "training": other.training} for _, other in loaded]}
    return model, dataclasses.replace(first, training=training)


def locate(source: str | Path) -> Path:
    """Find the file of a checkpoint given as a path or as the name of a shipped model."""
    path = Path(source)
    if path.suffix == SUFFIX or path.exists():
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint")
        return path
    shipped = shipped_models()
    if str(source) not in shipped:
        names = ", ".join(shipped) or "none"
        raise CheckpointError(f"no shipped weights for {source!r} (there are: {names}); or give a {SUFFIX} file")
    return shipped[str(source)]


def shipped_models() -> dict[str, Path]:
    """Name and file of the weights in the package."""
    folder = Path(str(resources.files("fastenh") / "weights"))
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stem)}


def read(path: Path) -> Checkpoint:
    """Read the contents of a checkpoint file, its format, model, configuration and hash checked."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("fastenh", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(header, dict) or "model" not in header:
        raise CheckpointError(f"{path}: a safetensors file, but not one that fastenh wrote")
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {header.get('format')}, this fastenh reads format {FORMAT}")
    if _digest(tensors) != header.get("sha256"):
        raise CheckpointError(f"{path}: damaged, its tensors do not match their SHA-256")
    try:
        config = make_config(header["model"], header["config"])
    except ModelError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(header["model"], config, header["training"], tensors, header["sha256"])


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor
    smaller = tensor.half()
    return smaller if smaller.isfinite().all() else tensor  # a batch norm's variance can be beyond fp16


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
