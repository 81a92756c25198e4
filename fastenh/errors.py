"""The two kinds of errors that the user can do something about.

Each error class is defined where it is raised and derives from one of these; the command line turns them into exit
codes (``cli/errors.py``). An error of neither kind is a fault of the program, and keeps its traceback.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` as a terminal may show it: escape sequences, line breaks and bytes that are no UTF-8 as ``\\x1b``.

    Names of files can hold all of these.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(Exception):
    """What was asked for cannot be done: an option, an argument or a recipe is wrong."""


class ProcessingError(Exception):
    """What was asked for makes sense, but a file, a device or the weights of a model did not allow it."""
