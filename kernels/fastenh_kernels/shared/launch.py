"""The one place where kernels are launched, or written down instead of launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton

from fastenh_kernels.backend import use_backend

_RECORDED_PROCESSORS = 132  # of an H100 or H200
LARGE = 128 * 1024  # bytes of shared memory that some configurations take
# Bytes a block may have, by compute capability
SHARED_MEMORY = {arch: 1024 * kib for arch, kib in ((80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99))}


@dataclass(frozen=True)
class Cost:
    """What the machine code does not say about a launch."""

    loops: tuple[float, ...]  # mean trip count of each loop, outermost first in the order of the code
    flop: float  # of its matrix products, without padding
    l2_bytes: float  # read and written by all programs
    dram_bytes: float  # every tensor once


@dataclass(frozen=True)
class Launch:
    """A launch as it would have happened: for compiling without a GPU, and for counting."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    cost: Cost


_records: list[Launch] | None = None
_recorded_capability = 90


@contextmanager
def recording(capability: int = 90) -> Iterator[list[Launch]]:
    """Write launches down, as on a GPU of that compute capability; tensors may then be on the meta device.

    Operations take their kernels meanwhile, on whatever device the tensors are.
    """
    global _records, _recorded_capability
    before = _records, _recorded_capability
    _records, _recorded_capability = [], capability
    try:
        with use_backend("record"):
            yield _records
    finally:
        _records, _recorded_capability = before


def is_recording() -> bool:
    return _records is not None


def launch(
    kernel: Any,
    programs: int,
    cost: Callable[[], Cost],
    /,
    *,
    num_warps: int,
    num_stages: int = 2,
    **arguments: Any,
) -> None:
    """Run ``programs`` programs with the kernel's ``arguments``, all on the x axis of the grid (y and z end at 65,535).
    No programs, no launch.

    ``cost`` is asked where launches are written down, never on the way to a GPU.
    """
    if _records is not None:
        _records.append(Launch(kernel, programs, arguments, num_warps, num_stages, cost()))
    elif programs:
        with _on_device_of(arguments):
            kernel[(programs,)](**arguments, num_warps=num_warps, num_stages=num_stages)


def _on_device_of(arguments: dict[str, Any]) -> AbstractContextManager[object]:
    """Triton launches on the current device, wherever the tensors are."""
    values = (getattr(value, "base", value) for value in arguments.values())  # a descriptor has the tensor as its base
    device = next(value.device for value in values if isinstance(value, torch.Tensor))
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def warpgroups(device: torch.device) -> bool:
    """Whether the configurations of Hopper run: four warps multiply together. Later chips spill in them, or worse."""
    return _capability(device) // 10 == 9


def tensor_memory(device: torch.device) -> bool:
    """Whether products are summed in a memory of their own (sm_100). They come from there to the registers at once, so
    kernels that fill the registers elsewhere spill."""
    return _capability(device) // 10 == 10


def shared_memory(device: torch.device) -> int:
    """Bytes a block may have."""
    if _records is not None or device.type != "cuda":
        return SHARED_MEMORY[_recorded_capability]
    return _properties(device)[2]


def _capability(device: torch.device) -> int:
    """That of the recorder where launches are written down, 90 for the interpreter."""
    if _records is not None or device.type != "cuda":
        return _recorded_capability
    return _properties(device)[0]


def processors(device: torch.device) -> int:
    """Streaming multiprocessors; of an H100 where launches are written down or interpreted."""
    return _properties(device)[1] if device.type == "cuda" else _RECORDED_PROCESSORS


@cache
def _properties(device: torch.device) -> tuple[int, int, int]:
    """(compute capability, processors, bytes of shared memory)."""
    found = torch.cuda.get_device_properties(device)
    return 10 * found.major + found.minor, found.multi_processor_count, found.shared_memory_per_block_optin  # type: ignore[attr-defined]


def chunk_of(length: int, tiles: int, device: torch.device, least: int = 8) -> int:
    """How much of ``length`` a program walks along, where ``tiles`` programs walk beside each other: the chunk with
    which the processors, which take programs in turn, are through first."""
    return _chunk_of(length, tiles, processors(device), least)


@cache
def _chunk_of(length: int, tiles: int, processors: int, least: int) -> int:
    """A program walks a frame more at both ends. One by itself on a processor hides no waiting, so that it must be
    quicker by a tenth."""

    def steps(chunk: int) -> int:
        turns = triton.cdiv(tiles * triton.cdiv(length, chunk), processors)
        return turns * (chunk + 2) * (11 if turns == 1 else 10)

    longest = min(length, 2 * triton.cdiv(length * tiles, processors))
    return min(range(least, max(least, longest) + 1), key=steps)


def parts_of(tiles: int, blocks: int, device: torch.device, an_sm: int = 2) -> int:
    """How many programs share ``tiles`` and leave a part of a sum each, ``blocks`` sums at a time: ``an_sm`` programs
    an SM, or one where each would have fewer than four tiles. Two hide each other's waiting; of one there are fewer
    parts, which must be written and read again: that is what matters where a part is a matrix."""
    parts = max(1, an_sm * processors(device) // blocks)
    if an_sm > 1 and tiles >= 4 * parts:
        return parts
    return max(1, fewest_programs(tiles, max(1, processors(device) // blocks)))


def fewest_programs(tiles: int, most: int) -> int:
    """As few programs as are through with ``tiles``, which they take in turn, as soon as ``most`` would be."""
    return triton.cdiv(tiles, max(1, triton.cdiv(tiles, most)))


def dot_precision(tensor: torch.Tensor) -> str:
    """How ``tl.dot`` multiplies float32: as TF32 where torch may, else by three TF32 products (close to float32)."""
    if tensor.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32:
        return "tf32x3"
    return "tf32"


def size(*tensors: torch.Tensor) -> int:
    """Bytes of tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
