"""One clear line for each error that the user can correct."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from fastenh.errors import ProcessingError, UsageError, printable
from fastenh_kernels import BackendError


@contextmanager
def one_line() -> Iterator[None]:
    """Turn errors into exit codes: 2 for a wrong command line or recipe, 1 for problems with files and devices."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # addressed to programmers
    try:
        yield
    except (UsageError, BackendError) as error:
        raise click.UsageError(printable(str(error))) from error
    except (ProcessingError, OSError) as error:
        raise click.ClickException(printable(_words(error))) from error


def _words(error: Exception) -> str:
    """The message of an ``OSError`` without its number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)
