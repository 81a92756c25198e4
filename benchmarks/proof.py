"""The kernels' own test on a GPU, each operation in a process of its own: all of them compile at the same time, and
what they compile stays in Triton's cache for whatever runs next.

usage: python -m benchmarks.proof [--jobs 14] [-o FILE]        a line an example; exit code 1 where one is off
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fastenh_kernels.operation import OPERATIONS
from fastenh_kernels.proof import proofs

DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def prove(device: str, name: str, dtype: torch.dtype, gradients: bool) -> list[dict[str, Any]]:
    """What the examples of one operation gave, and after how many seconds; the first ones compile."""
    rows, began = [], time.monotonic()
    for proof in proofs(torch.device(device), dtype, gradients=gradients, only=name):
        seconds, began = time.monotonic() - began, time.monotonic()
        rows.append({**proof._asdict(), "dtype": str(dtype)[6:], "fault": proof.fault, "seconds": seconds})
    return rows


def line(row: dict[str, Any]) -> str:
    result = row["error"] or f"{row['distance']:.1e} of {row['most']:.0e}"
    verdict = "FAULT" if row["fault"] else "equal"
    return f"{verdict}  {row['name']:50} {row['dtype']:9} {row['seconds']:5.1f} s  {result}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(prove, options.device, name, dtype, gradients)
            for dtype, gradients, name in product(DTYPES, (True, False), OPERATIONS)
        ]
        for job in as_completed(jobs):
            for row in job.result():
                rows.append(row)
                print(line(row), flush=True)
            if options.output:
                options.output.write_text(json.dumps(rows, indent=1))
    faults = sum(bool(row["fault"]) for row in rows)
    print(f"{len(rows) - faults} of {len(rows)} examples equal the reference")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
