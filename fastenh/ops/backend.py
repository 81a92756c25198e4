"""Which implementation of the operations runs, and why.

``FASTENH_BACKEND`` or ``use_backend`` force one. ``auto`` takes the Triton kernels on a GPU where they can run and
equal the reference in a test of their own (``proof.py``, once a process), and the reference everywhere else. All of
this is found out before the first launch, never by an exception in the middle of a job.
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
from torch import Tensor

from fastenh.ops import proof, reference

log = logging.getLogger("fastenh")
BACKENDS = ("auto", "reference", "triton", "interpret")


class BackendError(RuntimeError):
    """A backend was asked for by name that cannot run here."""


@dataclass(frozen=True)
class Choice:
    """The implementation for a device: ``name`` ("reference", "triton", "interpret") and the reason in words."""

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
    """The implementation that serves tensors on ``device``, ``training`` where gradients are wanted.

    Raises ``BackendError`` where a forced one cannot run.
    """
    asked = _forced or _checked(os.environ.get("FASTENH_BACKEND", "auto"), "FASTENH_BACKEND")
    if asked == "reference":
        return Choice("reference", "asked for")
    if asked == "auto":
        obstacle = _automatic_obstacle(device.type, device.index, training)
        return Choice("reference", obstacle) if obstacle else Choice("triton", "equal to the reference on this GPU")
    obstacle = _obstacle(asked, device.type, device.index)
    if obstacle:
        raise BackendError(f"backend {asked!r} cannot run on {device}: {obstacle}; use auto or reference")
    return Choice(asked, "asked for")


def pick(name: str, *tensors: Tensor) -> Callable[..., Any]:
    """The function that does operation ``name`` with these tensors.

    The kernels do not count in float64: the reference serves there.
    """
    double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if double or choose(tensors[0].device, training).name == "reference":
        return getattr(reference, name)
    from fastenh.ops import kernels  # Triton may be absent where nobody asks for it

    return getattr(kernels, name)


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"{source} must be one of {', '.join(BACKENDS)}, not {name!r}")
    return name


@torch.compiler.assume_constant_result  # found out while torch.compile traces, no part of the graph
def _obstacle(asked: str, device_type: str, index: int | None) -> str:
    return _interpreter_obstacle() if asked == "interpret" else _triton_obstacle(device_type, index)


@torch.compiler.assume_constant_result
def _automatic_obstacle(device_type: str, index: int | None, training: bool) -> str:
    return _checked_obstacle(device_type, index, training)


@cache
def _checked_obstacle(device_type: str, index: int | None, training: bool) -> str:
    """Why the reference runs, or nothing; asked once a device and use, and said in one line of the log."""
    obstacle = _checked_obstacle(device_type, index, False) if training else _triton_obstacle(device_type, index)
    if not obstacle:
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
        kernels = importlib.import_module("fastenh_kernels")
        importlib.import_module("triton").runtime.driver.active.utils  # builds its launcher: needs a C compiler  # noqa: B018
    except Exception as error:  # whatever a missing compiler, header or driver makes Triton raise
        return f"Triton cannot run here ({type(error).__name__}: {str(error).splitlines()[0]})"
    return "they were loaded for the interpreter" if kernels.INTERPRETED else ""


@cache
def _interpreter_obstacle() -> str:
    """Why the kernels cannot be interpreted, or nothing. Triton decides when the kernels are imported."""
    if "fastenh_kernels" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        kernels = importlib.import_module("fastenh_kernels")
    except ImportError as error:
        return f"the kernels cannot be imported ({error})"
    return "" if kernels.INTERPRETED else "the kernels were loaded for a GPU before; set TRITON_INTERPRET=1"
