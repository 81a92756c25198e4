"""fastenh info: what is installed, and what will run."""

from __future__ import annotations

import platform
from importlib import metadata

import click
import torch

from fastenh import __version__
from fastenh.cli.errors import one_line
from fastenh.devices import pick_dtype
from fastenh.evaluate.metrics import LABELS, available
from fastenh.models.checkpoint import shipped_models
from fastenh_kernels import backend

_PACKAGES = (
    "torch", "triton", "numpy", "soundfile", "soxr", "av", "safetensors", "pesq", "pystoi", "torchaudio", "onnxruntime",
    "matplotlib",
)  # fmt: skip


@click.command("info")
def command() -> None:
    """Show versions, devices and the backend that will run, with the reason."""
    click.echo(f"fastenh {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    click.echo(f"packages: {', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}")
    click.echo(f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    with one_line():
        for name in devices:
            choice = backend.choose(torch.device(name))
            label = torch.cuda.get_device_name(name) if name.startswith("cuda") else name
            dtype = str(pick_dtype("auto", torch.device(name))).removeprefix("torch.")
            click.echo(f"backend on {label}: {choice.name} ({choice.reason}), {dtype}")
    click.echo(f"metrics: {', '.join(LABELS[metric] for metric in available())}")
    click.echo(f"shipped weights: {', '.join(shipped_models()) or 'none'}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
