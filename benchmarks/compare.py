"""What changed between two runs: python -m benchmarks.compare A.json B.json

Takes the results of ``gpu.py``; ``python -m benchmarks.roofline --compare`` compares what is counted without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

NOISE = 0.03  # a change below this is within what runs differ by


def figures(path: Path) -> tuple[str, dict[str, float]]:
    """(what it is, microseconds a clip by name). Raises ``ValueError`` for another file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            f"{r['name']}, {r['impl']}, {r['clips']} clips": 1e3 * r["p50_ms"] / r["clips"] for r in content["rows"]
        }
        return f"measured on {content['device']}", rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no results of benchmarks.gpu ({error})") from error


def compare(before: Path, after: Path) -> str:
    """A line for each name. Raises ``ValueError`` for runs of different kinds or devices."""
    (kind, old), (other, new) = figures(before), figures(after)
    if kind != other:
        raise ValueError(f"{before} is {kind}, {after} is {other}: not comparable")
    lines = [f"{kind}; microseconds for a clip of 3 s", f"{'':58} {'before':>9} {'after':>9} {'change':>8}"]
    for name in old | new:
        if name not in old or name not in new:
            lines.append(f"{name:58} {'only ' + ('before' if name in old else 'after'):>28}")
            continue
        change = new[name] / old[name] - 1
        mark = "" if abs(change) < NOISE else ("  slower" if change > 0 else "  faster")
        lines.append(f"{name:58} {old[name]:9.2f} {new[name]:9.2f} {change:+8.1%}{mark}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    try:
        print(compare(options.before, options.after))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
