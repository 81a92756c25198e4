"""Cut a data folder into pieces that a machine with a small inbox takes one after the other.

    python scripts/cut_data.py DATA PIECES [MIB]

PIECES/0, PIECES/1, ... hold speech/, noise/ and rir/ each, at most MIB (55) a piece, of copies of DATA's recordings;
``scripts/gpu.sh train`` reads them together from .data/.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_PARTS = ("speech", "noise", "rir")


def main(data: Path, pieces: Path, mebibytes: float) -> None:
    if pieces.exists() and any(pieces.iterdir()):
        sys.exit(f"{pieces}: not empty")
    number, room = -1, 0.0
    for file in sorted(file for part in _PARTS if (data / part).is_dir() for file in (data / part).iterdir()):
        size = file.stat().st_size
        if size > room:
            number, room = number + 1, mebibytes * 2**20
        room -= size
        target = pieces / str(number) / file.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.name)
    print(f"{number + 1} pieces in {pieces}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 55.0)
