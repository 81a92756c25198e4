"""The one place where kernels are launched, or written down instead of launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """A launch as it would have happened: for compiling without a GPU, and for counting."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int


_records: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Write launches down instead of doing them; tensors may then be on the meta device."""
    global _records
    before, _records = _records, []
    try:
        yield _records
    finally:
        _records = before


def launch(kernel: Any, programs: int, arguments: dict[str, Any], *, num_warps: int, num_stages: int = 2) -> None:
    """Run ``programs`` programs, all on the x axis of the grid (y and z end at 65,535). No programs, no launch."""
    if _records is not None:
        _records.append(Launch(kernel, programs, arguments, num_warps, num_stages))
    elif programs:
        kernel[(programs,)](**arguments, num_warps=num_warps, num_stages=num_stages)


def dot_precision(tensor: torch.Tensor) -> str:
    """How ``tl.dot`` multiplies float32: as TF32 where torch may, else by three TF32 products (close to float32)."""
    if tensor.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32:
        return "tf32x3"
    return "tf32"
