"""The kernels' own test on a GPU, every example with what it gave: as ``fastenh_kernels.proving`` does it, and nothing
is remembered. What is compiled stays in Triton's cache for whatever runs next.

usage: python -m benchmarks.proof [--jobs 14] [-o FILE]        a line an example; exit code 1 where one is off
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import fastenh_kernels  # noqa: F401  (its operations)
from fastenh_kernels.proving import findings


def line(row: dict[str, Any]) -> str:
    result = row["error"] or f"{row['distance']:.1e} of {row['most']:.0e}"
    verdict = "FAULT" if row["fault"] else "equal"
    return f"{verdict}  {row['name']:70} {row['dtype']:9} {result}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="children at a time (default: what there is room for)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for row in findings(torch.device(options.device), options.jobs):
        rows.append(row)
        print(line(row), flush=True)
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1))
    faults = sum(bool(row["fault"]) for row in rows)
    print(f"{len(rows) - faults} of {len(rows)} examples equal the reference")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
