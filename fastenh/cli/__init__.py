"""The command line. Each command is a module of its own, imported when it is called: help needs no torch."""

from __future__ import annotations

import importlib

import click

from fastenh import __version__

_COMMANDS = {
    "enhance": "Take the noise out of files and folders.",
    "live": "Take the noise out of a microphone's sound while somebody speaks.",
    "demo": "Compare a recording before and after in the browser.",
    "evaluate": "Measure PESQ, STOI and SI-SDR against clean references.",
    "train": "Train a model on your own data.",
    "data": "Unpack archives of recordings; pack recordings into one file.",
    "profile": "Show where the time of a training step goes.",
    "checkpoint": "Describe, convert and average checkpoints.",
    "export": "Write a model as an ONNX file, which needs no PyTorch.",
    "plot": "Draw spectrograms, gains, attention, runs and results.",
    "models": "List the models with their size and cost.",
    "info": "Show versions, devices and the backend that will run.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return importlib.import_module(f"fastenh.cli.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastenh")
def main() -> None:
    """Take noise out of recorded speech, fast."""
