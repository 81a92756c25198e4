"""Which backend runs the operations on a device, and why.

- ``reference``: the truth, in pure PyTorch.
- ``cpu``: the same in forms that a processor gains by (tiles that stay in the caches, oneDNN, gradients by hand).
- ``triton``: the kernels, on a GPU.
- ``interpret``: the kernels in Triton's interpreter, on the CPU, to be tested.

``FASTENH_BACKEND`` or ``use_backend`` force one. ``auto`` takes ``cpu`` on a CPU, except in a graph that torch.compile
makes; the kernels on a GPU where they can run and equal the reference in a test of their own (``proving.py``, once a
device); and the reference everywhere else, for an operation and dtype alone where others are right. All of this is
found out before the first launch, never by an exception in the middle of a job.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

log = logging.getLogger("fastenh")
BACKENDS = ("auto", "reference", "cpu", "triton", "interpret")
_RECORD = "record"  # the kernels, on whatever device, for launches that are written down (shared/launch.py)


def constant_in_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark what is found out while torch.compile traces, and is no part of the graph.

    ``torch.compiler.assume_constant_result`` sets the same mark, but imports all of its compiler before, and Triton
    with it, which then can no longer be told to interpret.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class BackendError(RuntimeError):
    """A backend that was asked for by name and cannot run here."""


@dataclass(frozen=True)
class Choice:
    """The backend for a device by name, and the reason in words."""

    name: str
    reason: str


_forced: str | None = None


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend by name within the context; None leaves the choice to ``FASTENH_BACKEND``.

    Raises ``BackendError`` for a name that is none of ``BACKENDS``.
    """
    global _forced
    before, _forced = _forced, name and _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def choose(
    device: torch.device, training: bool = False, operation: str | None = None, dtype: torch.dtype | None = None
) -> Choice:
    """The backend that serves an operation in a dtype on ``device``, ``training`` where gradients are wanted; without
    an operation: what serves most of them.

    Raises ``BackendError`` where a forced one cannot run.
    """
    asked = _forced or _checked(os.environ.get("FASTENH_BACKEND", "auto"), "FASTENH_BACKEND")
    if asked == "reference":
        return Choice("reference", "asked for")
    if asked == _RECORD:
        return Choice("triton", "launches are written down")
    if asked == "auto":
        return _automatic(device, training, operation, dtype)
    obstacle = _obstacle(asked, device.type, device.index)
    if obstacle:
        raise BackendError(f"backend {asked!r} cannot run on {device}: {obstacle}; use auto or reference")
    return Choice(asked, "asked for")


def _automatic(device: torch.device, training: bool, operation: str | None, dtype: torch.dtype | None) -> Choice:
    if device.type == "cpu" and not torch.compiler.is_compiling():
        return Choice("cpu", "forms of the operations made for processors")
    obstacle = _automatic_obstacle(device.type, device.index, training, operation, str(dtype).removeprefix("torch."))
    if obstacle:
        return Choice("reference", obstacle)
    return Choice("triton", "equal to the reference on this GPU" if operation else _words(device.type, device.index))


def _checked(name: str, source: str) -> str:
    if name not in (*BACKENDS, _RECORD):
        raise BackendError(f"{source} must be one of {', '.join(BACKENDS)}, not {name!r}")
    return name


@constant_in_graphs
def _obstacle(asked: str, device_type: str, index: int | None) -> str:
    if asked == "cpu":
        return "" if device_type == "cpu" else "it is made for processors"
    return _interpreter_obstacle() if asked == "interpret" else _triton_obstacle(device_type, index)


@constant_in_graphs
def _automatic_obstacle(device_type: str, index: int | None, training: bool, operation: str | None, dtype: str) -> str:
    """Why the reference runs, or nothing."""
    obstacle = _triton_obstacle(device_type, index)
    if obstacle:
        return obstacle
    found = _faults(device_type, index)
    if operation is None:
        return ""
    from fastenh_kernels.proving import key

    return found.get(key(operation, dtype, training), "")


@cache
def _faults(device_type: str, index: int | None) -> dict[str, str]:
    """What the proof found; asked once a device, and said in one line of the log."""
    from fastenh_kernels import proving  # walks over the operations, which ask this module

    device = torch.device(device_type) if index is None else torch.device(device_type, index)
    found = proving.faults(device)
    log.info("%s: Triton kernels %s", device, _but_for(found))
    return found


@constant_in_graphs
def _words(device_type: str, index: int | None) -> str:
    return _but_for(_faults(device_type, index))


def _but_for(found: dict[str, str]) -> str:
    if not found:
        return "equal to the reference on this GPU"
    return "but for " + "; ".join(f"{what}: {fault}" for what, fault in found.items())


@cache
def _triton_obstacle(device_type: str, index: int | None) -> str:
    """Why the kernels cannot run on this device, or nothing; asked once a device."""
    if device_type != "cuda":
        return f"no Triton kernels for {device_type}"
    if torch.cuda.get_device_capability(index) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    try:
        importlib.import_module("triton").runtime.driver.active.utils  # builds its launcher: needs a C compiler  # noqa: B018
        interpreted = interprets()
    except Exception as error:  # whatever a missing compiler, header or driver makes Triton raise
        return f"Triton cannot run here ({type(error).__name__}: {str(error).splitlines()[0]})"
    return "Triton was loaded for its interpreter" if interpreted else ""


@cache
def _interpreter_obstacle() -> str:
    """Why the kernels cannot be interpreted, or nothing. Triton decides when it is imported."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        return "" if interprets() else "Triton was loaded for a GPU before; set TRITON_INTERPRET=1"
    except ImportError as error:
        return f"the kernels cannot be imported ({error})"


def interprets() -> bool:
    """Whether kernels of this process run in Triton's interpreter. Raises ``ImportError`` where there is no Triton."""
    return importlib.import_module("triton").knobs.runtime.interpret
