"""The kernels' proof on a device, in child processes, and its result remembered.

A fault in a kernel comes up at some later call and leaves its process without a GPU: it must not be this one. Children
compile at the same time, too. What they find is kept in a file by device, driver, versions and code, so that it is
found out once.

usage: python -m fastenh_kernels.proving DEVICE DTYPE OPERATION FRAMES ...     (what a child runs: a line a proof)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fastenh_kernels.operation import OPERATIONS
from fastenh_kernels.proof import FRAMES, Proof, proofs

log = logging.getLogger("fastenh")

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
_CHILD_BYTES = 2**30  # of the device, for what a child allocates: its context before all
_MOST_CHILDREN = 14
_PATIENCE_S = 300  # for a kernel that hangs
_PASSING = ("out of memory", "no answer")  # faults that say nothing of the kernel: asked again the next time


def faults(device: torch.device) -> dict[str, str]:
    """What is wrong on a device, by ``key``; remembered from an earlier process, or proven now."""
    path = _folder() / f"{_fingerprint(device)}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found: dict[str, str] = {}
    for row in findings(device):
        if row["fault"]:
            found.setdefault(key(row["operation"], row["dtype"], row["gradients"]), row["fault"])
    if not any(word in fault for fault in found.values() for word in _PASSING):
        _remember(path, found)
    return found


def key(operation: str, dtype: str, training: bool) -> str:
    return f"{operation}, {dtype}, {'training' if training else 'inference'}"


def findings(device: torch.device, jobs: int | None = None) -> Iterator[dict[str, Any]]:
    """Every proof as it is done, an operation and dtype a child: the fields of ``Proof``, and which it is of."""
    cases = [(name_of(dtype), operation) for dtype, operation in product(DTYPES, OPERATIONS)]
    with ThreadPoolExecutor(jobs or _children(device)) as pool:
        for done in as_completed([pool.submit(_child, str(device), *case) for case in cases]):
            yield from done.result()


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _children(device: torch.device) -> int:
    """As many at a time as there are processors and memory of the device for."""
    room = torch.cuda.mem_get_info(device)[0] // _CHILD_BYTES if device.type == "cuda" else _MOST_CHILDREN
    return max(1, min(os.cpu_count() or 1, room, _MOST_CHILDREN))


def _child(device: str, dtype: str, operation: str, frames: Sequence[int] = FRAMES) -> list[dict[str, Any]]:
    """The proofs of an operation; where the child dies, what it did not get to is a fault."""
    command = [sys.executable, "-m", "fastenh_kernels.proving", device, dtype, operation, *map(str, frames)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_PATIENCE_S, check=False
        )
        written, code = done.stdout, str(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, code = error.stdout or "", "no end"
        written = output if isinstance(output, str) else output.decode()  # bytes, in Python 3.11
    rows = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    if code != "0":
        words = f"no answer from its test ({code})"
        for gradients in (False, True):
            proof = Proof(operation, float("inf"), 0.0, words)
            rows.append(_row(proof, operation, dtype, gradients))
    return rows


def _row(proof: Proof, operation: str, dtype: str, gradients: bool) -> dict[str, Any]:
    more = {"operation": operation, "dtype": dtype, "gradients": gradients, "fault": proof.fault}
    return {**proof._asdict(), **more}


def main(device: str, dtype: str, operation: str, *frames: str) -> None:
    for gradients in (False, True):
        for proof in proofs(torch.device(device), getattr(torch, dtype), [*map(int, frames)], gradients, operation):
            print(json.dumps(_row(proof, operation, dtype, gradients)), flush=True)


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FASTENH_CACHE") or Path(cache) / "fastenh") / "proofs"


def _fingerprint(device: torch.device) -> str:
    """Of all that the result depends on."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    driver = Path("/proc/driver/nvidia/version")
    parts = [
        str(properties and (properties.name, properties.major, properties.minor, properties.multi_processor_count)),
        driver.read_text() if driver.exists() else "",
        torch.__version__,
        _version("triton"),
        *(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("*.py"))),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _remember(path: Path, found: dict[str, str]) -> None:
    """Written whole or not at all; a folder that cannot be written to only costs the time."""
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(found, indent=1), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        log.info("the proof of the kernels is not remembered: %s", error)


if __name__ == "__main__":
    main(*sys.argv[1:])
