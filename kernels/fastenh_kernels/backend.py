"""Which backend runs the operations on a device, and why.

- ``reference``: the truth, in pure PyTorch.
- ``cpu``: the same in forms that a processor gains by (tiles that stay in the caches, oneDNN, gradients by hand).
- ``triton``: the kernels, on a GPU.
- ``interpret``: the kernels in Triton's interpreter, on the CPU, to be tested.

``FASTENH_BACKEND`` or ``use_backend`` force one. ``auto`` takes ``cpu`` on a CPU, except in a graph that torch.compile
makes; the kernels on a GPU where they can run and equal the reference in a test of their own (``proof.py``, once a
process); and the reference everywhere else. All of this is found out before the first launch, never by an exception in
the middle of a job.
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
    function._dynamo_marked_constant = True
    return function


class BackendError(RuntimeError):
    """A backend was asked for by name that cannot run here."""


@dataclass(frozen=True)
class Choice:
    """The backend for a device by name, and the reason in words."""

    name: str
    reason: str


_forced: str | None = None


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend by name for the time of the context; None leaves it to ``FASTENH_BACKEND``.

    Raises ``BackendError`` for a name that is none of ``BACKENDS``.
    """
    global _forced
    before, _forced = _forced, name and _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def choose(device: torch.device, training: bool = False) -> Choice:
    """The backend that serves tensors on ``device``, ``training`` where gradients are wanted.

    Raises ``BackendError`` where a forced one cannot run.
    """
    asked = _forced or _checked(os.environ.get("FASTENH_BACKEND", "auto"), "FASTENH_BACKEND")
    if asked == "reference":
        return Choice("reference", "asked for")
    if asked == _RECORD:
        return Choice("triton", "launches are written down")
    if asked == "auto":
        return _automatic(device, training)
    obstacle = _obstacle(asked, device.type, device.index)
    if obstacle:
        raise BackendError(f"backend {asked!r} cannot run on {device}: {obstacle}; use auto or reference")
    return Choice(asked, "asked for")


def _automatic(device: torch.device, training: bool) -> Choice:
    if device.type == "cpu" and not torch.compiler.is_compiling():
        return Choice("cpu", "forms of the operations made for processors")
    obstacle = _automatic_obstacle(device.type, device.index, training)
    return Choice("reference", obstacle) if obstacle else Choice("triton", "equal to the reference on this GPU")


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
def _automatic_obstacle(device_type: str, index: int | None, training: bool) -> str:
    return _proven_obstacle(device_type, index, training)


@cache
def _proven_obstacle(device_type: str, index: int | None, training: bool) -> str:
    """Why the reference runs, or nothing; asked once a device and use, and said in one line of the log."""
    obstacle = _proven_obstacle(device_type, index, False) if training else _triton_obstacle(device_type, index)
    if not obstacle:
        from fastenh_kernels import proof  # walks over the operations, which ask this module

        device = torch.device(device_type, index)
        results = (proof.disproof(device, dtype, gradients=training) for dtype in (torch.float32, torch.bfloat16))
        obstacle = next(filter(None, results), "")
    use = "training" if training else "inference"
    log.info("%s, %s: %s", device_type, use, f"reference path, {obstacle}" if obstacle else "Triton kernels")
    return obstacle


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
