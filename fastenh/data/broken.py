"""Broken files among many good ones: named and left out, as long as they are few."""

from __future__ import annotations

from collections.abc import Sequence

from fastenh.audio.files import AudioError

_TOLERATED = 0.01  # of the files; one is always tolerated


def left_out(errors: Sequence[str], total: int) -> list[str]:
    """A warning for each of the files, ``total`` in number, that cannot be used.

    Raises ``AudioError`` with the first of them where they are more than one and more than 1 %, or all.
    """
    if errors and (len(errors) > max(1, _TOLERATED * total) or len(errors) == total):
        raise AudioError(f"{errors[0]} ({len(errors)} of {total} files cannot be used)")
    return [f"{error}; left out" for error in errors]
