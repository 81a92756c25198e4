"""The two kinds of errors that the user can do something about.

Each error class is defined where it is raised and derives from one of these; the command line turns them into exit
codes (``cli/errors.py``). An error of neither kind is a fault of the program, and keeps its traceback.
"""

from __future__ import annotations


class UsageError(Exception):
    """What was asked for cannot be done: an option, an argument or a recipe is wrong."""


class ProcessingError(Exception):
    """What was asked for makes sense, but a file, a device or the weights of a model did not allow it."""
