"""What the compiler makes of every kernel, without a GPU.

usage: python -m benchmarks.roofline [--arch sm_90] [--dtype bfloat16]
       python -m benchmarks.roofline --pipes [--json FILE]

Each operation runs on meta tensors with its launches written down instead of done; every distinct launch is compiled
for the asked architectures. The gate: no spilled registers, shared memory within the chip's limit, and a tensor-core
instruction in every 16-bit kernel that multiplies matrices. Exit code 1 where it is not met.

With --pipes: how busy the forward pass and a training step of dpt keep each pipe of an SM, see ``pipes.py``.
Estimated, not measured.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.roofline.cubins import DTYPES, SHARED_MEMORY
from benchmarks.roofline.gate import gate
from benchmarks.roofline.tables import print_pipes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", action="append", choices=list(DTYPES))
    parser.add_argument("--arch", action="append", choices=[f"sm_{arch}" for arch in SHARED_MEMORY])
    parser.add_argument(
        "--pipes", action="store_true", help="count the pipes of the forward pass and of a training step (sm_90)"
    )
    parser.add_argument("--json", metavar="FILE", help="with --pipes: write the figures to FILE, too")
    options = parser.parse_args()
    if options.pipes:
        if options.arch and options.arch != ["sm_90"]:
            parser.error("--pipes: the rates of the pipes are known for sm_90 alone")
        print_pipes(options.json)
        return 0
    if options.json:
        parser.error("--json: goes with --pipes")
    arches = [int(name.removeprefix("sm_")) for name in options.arch or [f"sm_{arch}" for arch in SHARED_MEMORY]]
    return 1 if gate(arches, options.dtype or list(DTYPES)) else 0


if __name__ == "__main__":
    sys.exit(main())
