"""Errors: which kind each class is of, and the exit code that it becomes."""

import importlib
import pkgutil

import click
import pytest
from click.testing import CliRunner

import fastenh
from fastenh.audio.devices import SoundDeviceError
from fastenh.audio.files import AudioError
from fastenh.cli.errors import one_line
from fastenh.data.archives import ArchiveError
from fastenh.data.pairs import PairError
from fastenh.demo.enhancement import RecordingError
from fastenh.demo.server import DemoError
from fastenh.devices import DeviceError
from fastenh.enhance.cluster import ClusterError, ClusterUsageError
from fastenh.enhance.enhancer import EnhancementError
from fastenh.enhance.layout import JobError
from fastenh.enhance.spans import SpanError
from fastenh.errors import ProcessingError, UsageError
from fastenh.evaluate.metrics import MetricError
from fastenh.models.checkpoint import CheckpointError
from fastenh.models.export import ExportError
from fastenh.models.live import LiveModelError
from fastenh.models.registry import ModelError
from fastenh.plots.figures import PictureNameError, PlotError
from fastenh.plots.inside import ChoiceError
from fastenh.remote import RemoteError, RemoteUsageError
from fastenh.train.loop import TrainingError
from fastenh.train.ranks import RankError
from fastenh.train.recipe import RecipeError
from fastenh.train.state import RunError
from fastenh_kernels import BackendError

# class: exit code, and the class of Python's own that callers may catch it by
OURS = {
    ChoiceError: (2, ValueError),
    ClusterUsageError: (2, ValueError),
    DeviceError: (2, ValueError),
    JobError: (2, ValueError),
    ModelError: (2, ValueError),
    PictureNameError: (2, ValueError),
    RankError: (2, ValueError),
    RecipeError: (2, ValueError),
    RemoteUsageError: (2, ValueError),
    SoundDeviceError: (2, Exception),
    SpanError: (2, ValueError),
    ArchiveError: (1, ValueError),
    AudioError: (1, Exception),
    CheckpointError: (1, ValueError),
    ClusterError: (1, Exception),
    DemoError: (1, Exception),
    EnhancementError: (1, RuntimeError),
    ExportError: (1, RuntimeError),
    LiveModelError: (1, ValueError),
    MetricError: (1, Exception),
    PairError: (1, ValueError),
    PlotError: (1, ValueError),
    RecordingError: (1, Exception),
    RemoteError: (1, Exception),
    RunError: (1, ValueError),
    TrainingError: (1, RuntimeError),
}
OTHERS = {BackendError: 2, OSError: 1, FileNotFoundError: 1}  # the operations know nothing of fastenh
CODES = {kind: code for kind, (code, _) in OURS.items()} | OTHERS


def public_errors() -> set[type[Exception]]:
    """All of the package."""
    found: set[type[Exception]] = set()
    for module in pkgutil.walk_packages(fastenh.__path__, "fastenh."):
        if module.name in ("fastenh.__main__", "fastenh.models.onnx_frontend", "fastenh.demo.page"):  # extras
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.name:
                found |= set() if name.startswith("_") else {value}
    return found - {UsageError, ProcessingError}


def test_the_table_holds_every_error_class():
    assert public_errors() == set(OURS)


@pytest.mark.parametrize("kind", OURS)
def test_each_class_is_of_one_kind_and_of_the_class_of_python_that_it_was(kind):
    code, builtin = OURS[kind]
    assert issubclass(kind, UsageError) == (code == 2)
    assert issubclass(kind, ProcessingError) == (code == 1)
    assert {base for base in (ValueError, RuntimeError) if issubclass(kind, base)} == {builtin} - {Exception}


def call(error: Exception) -> tuple[object, str]:
    """(exit code, what was printed) of a command that raises it."""

    @click.command()
    def command() -> None:
        with one_line():
            raise error

    result = CliRunner().invoke(command)
    return result.exit_code, result.output


@pytest.mark.parametrize("kind", CODES)
def test_exit_code_and_message(kind):
    code, output = call(kind("x.wav: is wrong"))
    assert code == CODES[kind]
    lines = output.splitlines()
    assert lines[-1] == "Error: x.wav: is wrong"
    assert lines[0].startswith("Usage:") if code == 2 else len(lines) == 1


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError])
def test_a_fault_of_the_program_keeps_its_traceback(kind):
    with pytest.raises(kind), one_line():
        raise kind("a fault")
