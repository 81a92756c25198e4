"""What the compiler makes of every kernel, without a GPU.

usage: python -m benchmarks.roofline [--arch sm_90] [--dtype bfloat16]
       python -m benchmarks.roofline --pipes | --compare | --record

Each operation runs on meta tensors with its launches written down instead of done; every distinct launch is compiled
for the asked architectures. The gate: no spilled registers, shared memory within the chip's limit, and a tensor-core
instruction in every 16-bit kernel that multiplies matrices. Exit code 1 where it is not met.

With --pipes: how busy what ships of dpt keeps each pipe of an SM, see ``pipes.py``: windows of 256 frames, and a
training step of the recipes dpt-mix and dpt. Estimated, not measured. With --compare: what differs from the record,
``benchmarks/results/roofline.json``; exit code 1 where an estimate grew by more than 3 %. With --record: renew it.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.roofline import record
from benchmarks.roofline.cubins import DTYPES, SHARED_MEMORY
from benchmarks.roofline.gate import gate
from benchmarks.roofline.tables import counted, print_pipes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", action="append", choices=list(DTYPES))
    parser.add_argument("--arch", action="append", choices=[f"sm_{arch}" for arch in SHARED_MEMORY])
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--pipes", action="store_true", help="count the pipes of what ships (sm_90)")
    count.add_argument("--compare", action="store_true", help="count them and print what differs from the record")
    count.add_argument("--record", action="store_true", help="count them and renew the record")
    options = parser.parse_args()
    if options.pipes or options.compare or options.record:
        if options.arch or options.dtype:
            parser.error("the pipes are counted in bfloat16, for sm_90 alone")
        return _count(options)
    arches = [int(name.removeprefix("sm_")) for name in options.arch or [f"sm_{arch}" for arch in SHARED_MEMORY]]
    return 1 if gate(arches, options.dtype or list(DTYPES)) else 0


def _count(options: argparse.Namespace) -> int:
    found = counted()
    if options.pipes:
        print_pipes(found)
    if options.record:
        record.write(found)
    if options.compare:
        text, grown = record.compare(found)
        print(text)
        return 1 if grown else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
