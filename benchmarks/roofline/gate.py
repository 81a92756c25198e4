"""The gate: no spills, shared memory within the limit of the chip, tensor cores where matrices are multiplied."""

from __future__ import annotations

from collections.abc import Sequence

import triton

from benchmarks.roofline.cubins import DTYPES, code_of, compile_launch
from benchmarks.roofline.shipped import shipped_launches


def gate(arches: Sequence[int], dtypes: Sequence[str]) -> int:
    """Print a line for every kernel; returns how many fail."""
    faulty = 0
    print(f"triton {triton.__version__}\n{'kernel':52} {'arch':6} {'reg':>4} {'spills':>6} {'shared':>7} {'mma':>4}")
    for arch in arches:
        for dtype in dtypes:
            done = set()
            for name, launch in shipped_launches(DTYPES[dtype], arch):
                if code_of(launch) in done:
                    continue
                done.add(code_of(launch))
                cubin = compile_launch(launch, arch)
                figures = f"{cubin.registers:4} {cubin.spills:6} {cubin.shared:7} {cubin.tensor_core:4}"
                label = f"{name}, {dtype}"
                print(f"{label:52} sm_{arch:<3} {figures} {'; '.join(cubin.faults())}", flush=True)
                faulty += bool(cubin.faults())
    print(f"{faulty} kernels fail the gate" if faulty else "every kernel passes the gate")
    return faulty
