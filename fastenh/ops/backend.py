"""Which implementation of the operations runs, and why.

``FASTENH_BACKEND`` or ``use_backend`` force one; ``auto`` takes the kernels where they can run and the reference
everywhere else. It is found out before the first launch, never by an exception in the middle of a job.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from fastenh.ops import reference

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


def choose(device: torch.device) -> Choice:
    """The implementation that serves tensors on ``device``. Raises ``BackendError`` where a forced one cannot."""
    asked = _forced or _checked(os.environ.get("FASTENH_BACKEND", "auto"), "FASTENH_BACKEND")
    if asked == "reference":
        return Choice("reference", "asked for")
    if device.type != "cuda" and asked != "interpret":
        obstacle = f"no Triton kernels for device {device.type}"
    else:
        obstacle = _obstacle(device.type, device.index)
    if asked == "auto":
        return Choice("reference", obstacle) if obstacle else Choice("triton", "the device runs the kernels")
    if obstacle:
        raise BackendError(f"backend {asked!r} cannot run on {device}: {obstacle}; use auto or reference")
    return Choice(asked, "asked for")


def implementation(device: torch.device) -> ModuleType:
    """The module whose functions serve tensors on ``device``."""
    return reference if choose(device).name == "reference" else importlib.import_module("fastenh_kernels")


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"{source} must be one of {', '.join(BACKENDS)}, not {name!r}")
    return name


@cache
def _obstacle(device_type: str, index: int | None) -> str:
    """Why the kernels cannot serve this device, or nothing; asked once a device."""
    try:
        importlib.import_module("fastenh_kernels")
    except Exception as error:  # a broken Triton raises whatever it likes; the reference path must survive it
        return f"the Triton kernels cannot be imported ({error})"
    if device_type == "cuda" and torch.cuda.get_device_capability(index) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return ""
