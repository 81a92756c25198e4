"""One clear line for each error that the user can do something about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from fastenh.audio.files import AudioError
from fastenh.data.archives import ArchiveError
from fastenh.data.pairs import PairError
from fastenh.enhance.enhancer import DeviceError, EnhancementError
from fastenh.enhance.layout import JobError
from fastenh.enhance.spans import SpanError
from fastenh.models.checkpoint import CheckpointError
from fastenh.models.registry import ModelError
from fastenh.ops.backend import BackendError
from fastenh.train.loop import TrainingError
from fastenh.train.ranks import RankError
from fastenh.train.recipe import RecipeError
from fastenh.train.state import RunError

_USAGE = (RecipeError, JobError, BackendError, ModelError, DeviceError, RankError, SpanError)
_FAILURES = (AudioError, ArchiveError, PairError, CheckpointError, EnhancementError, RunError, TrainingError, OSError)


@contextmanager
def one_line() -> Iterator[None]:
    """Exit code 2 for what the command line or a recipe got wrong, 1 for what files and devices did."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # addressed to programmers
    try:
        yield
    except _USAGE as error:
        raise click.UsageError(str(error)) from error
    except _FAILURES as error:
        raise click.ClickException(str(error)) from error
