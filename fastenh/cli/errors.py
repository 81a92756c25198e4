"""One clear line for each error that the user can do something about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from fastenh.errors import ProcessingError, UsageError
from fastenh_kernels import BackendError


@contextmanager
def one_line() -> Iterator[None]:
    """Exit code 2 for what the command line or a recipe got wrong, 1 for what files and devices did."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # addressed to programmers
    try:
        yield
    except (UsageError, BackendError) as error:
        raise click.UsageError(str(error)) from error
    except (ProcessingError, OSError) as error:
        raise click.ClickException(str(error)) from error
