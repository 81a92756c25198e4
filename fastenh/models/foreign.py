"""Checkpoints that other programs pickled with ``torch.save``, the origin's above all.

Names of modules differ from program to program; what a tensor does in its module, its shape and its order do not. So
tensors are matched by role and shape, in order of appearance: encoder before decoder, layers as they were registered.
"""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastenh.models.checkpoint import CheckpointError
from fastenh.models.frontend import SpectralModel
from fastenh.models.registry import MODELS, build

_HOLDERS = ("model_state_dict", "model", "state_dict")  # the entry of a training checkpoint that holds the weights
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_CONSTANTS = ("pe", "fb", "window")  # positions, filter banks, windows: computed here
_LAYER_PARTS = {  # of nn.TransformerEncoderLayer, and what they are called here
    "self_attn.in_proj_weight": "qkv.weight",
    "self_attn.in_proj_bias": "qkv.bias",
    "self_attn.out_proj.weight": "out.weight",
    "self_attn.out_proj.bias": "out.bias",
    "linear1.weight": "up.weight",
    "linear1.bias": "up.bias",
    "linear2.weight": "down.weight",
    "linear2.bias": "down.bias",
}
_LAYER_MODULES = ("qkv", "out", "up", "down", "norm1", "norm2")


def read_pickled(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict, what else is in the file) of one of the forms: a state dict; {"model": state dict, "epoch",
    "val_loss"}; {"model_state_dict": state dict, "history", ...}.

    Only tensors, numbers and NumPy scalars are loaded, no code. Raises ``CheckpointError``, naming the keys found.
    """
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely ({_reason(error)})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    if _is_state_dict(content):
        return _plain(content), {}
    for key in _HOLDERS:
        if _is_state_dict(content.get(key)):
            return _plain(content[key]), {k: v for k, v in content.items() if k != key}
    raise CheckpointError(f"{path}: no state dict in it; keys found: {', '.join(map(str, content)) or 'none'}")


def _reason(error: Exception) -> str:
    """In words of our own where those of PyTorch advise to load the file without safety."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        return f"it holds {found[1]}, neither tensor nor number" if found else "damaged, or not of torch.save"
    if isinstance(error, KeyError):
        return "damaged, or not of torch.save"
    return str(error).strip().splitlines()[0]


def adopt(
    path: Path, state: Mapping[str, Tensor], name: str | None, configs: Mapping[str, Any]
) -> tuple[str, SpectralModel]:
    """(model's name, model) with the weights of a foreign state dict; ``name`` where the shapes shall not decide.

    configs: of the models, where they are not the default ones. Raises ``CheckpointError`` where none fits.
    """
    for candidate in [name] if name else MODELS:
        model = build(candidate, configs.get(candidate))
        pairs = _match(model.core.state_dict(), state)
        if pairs is not None:
            model.core.load_state_dict({ours: state[theirs] for ours, theirs in pairs.items()})
            return candidate, model.eval()
    wanted = name or "any of " + ", ".join(MODELS)
    keys = list(state)
    shown = ", ".join(f"{key} {tuple(state[key].shape)}" for key in keys[:4])
    raise CheckpointError(f"{path}: not the tensors of {wanted}; keys found: {shown} and {len(keys[4:])} more")


def _match(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Our names to theirs, or nothing where a tensor is left over on either side."""
    mine, given = _by_role(ours), _by_role(theirs)
    if mine.keys() != given.keys() or any(len(mine[role]) != len(given[role]) for role in mine):
        return None
    return {a: b for role in mine for a, b in zip(mine[role], given[role], strict=True)}


def _by_role(state: Mapping[str, Tensor]) -> dict[tuple[Any, ...], list[str]]:
    roles = defaultdict(list)
    for key, tensor in state.items():
        renamed = next((key.removesuffix(old) + new for old, new in _LAYER_PARTS.items() if key.endswith(old)), key)
        module, _, leaf = renamed.rpartition(".")
        part = module.rpartition(".")[2]
        kind = part if part in _LAYER_MODULES else _kind(state, key.rpartition(".")[0])
        roles[kind, leaf, tuple(tensor.shape)].append(key)
    return dict(roles)


def _kind(state: Mapping[str, Tensor], module: str) -> str:
    if f"{module}.running_mean" in state:
        return "batch norm"
    weight = state.get(f"{module}.weight")
    return "other" if weight is None else f"{weight.ndim} dimensions"


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {}
    for key, tensor in state.items():
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        if key.rpartition(".")[2] not in _CONSTANTS:
            plain[key] = tensor
    return plain


def _numpy_scalars() -> list[Any]:
    """What pickles of NumPy scalars refer to, by the names of NumPy 1 and 2."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # private to NumPy
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *{type(np.dtype(kind)) for kind in kinds}, *((scalar, name) for name in names)]
