"""What several test files need: a small model, speech-like signals, the samples."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Tensors of tests are small: threads would mostly wait for each other. Child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
import torch
from parity import DEVICES

if not torch.cuda.is_available():
    import interpreter  # noqa: F401, kernels run in it from here on

from fastenh.models import checkpoint
from fastenh.models.dpt import DPTConfig
from fastenh.models.registry import build
from fastenh_kernels import backend

if sys.platform == "win32":  # about signals, links, full disks and scripts of bash
    collect_ignore = ["test_enhance_resilience.py", "test_interrupted_job.py", "test_interrupts.py", "test_scripts.py"]

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
TINY_DPT = DPTConfig(channels=16, front_channels=4, head_channels=8, heads=2, feed_forward=32, blocks=1)


def voice(length: int, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Speech-like (length,): a gliding harmonic tone, switched on and off by syllables."""
    rng = np.random.default_rng(seed)
    time = np.arange(length) / rate
    pitch = 110 + 60 * rng.random() + 15 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 15))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time + rng.uniform(0, 6)) + 0.4, 0, 1)
    return (0.1 * tone * syllables).astype(np.float32)


def noise(length: int, seed: int = 0, scale: float = 0.05) -> np.ndarray:
    return (scale * np.random.default_rng(seed + 1000).standard_normal(length)).astype(np.float32)


def pytest_collection_modifyitems(items):
    if sys.platform != "linux":
        for item in items:
            if item.get_closest_marker("linux"):
                item.add_marker(pytest.mark.skip(reason="needs what Linux has"))


@pytest.fixture
def tiny_model():
    """A dual-path transformer of 16 channels with random weights."""
    torch.manual_seed(0)
    return build("dpt", TINY_DPT).eval()


@pytest.fixture
def tiny_checkpoint(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(path, "dpt", TINY_DPT, tiny_model, {}, half=False)
    return path


@pytest.fixture(params=DEVICES)
def target(request):
    """(device, dtype) under test, where the kernels run in this process."""
    pytest.importorskip("triton")
    if request.param[0] != ("cpu" if backend.interprets() else "cuda"):
        pytest.skip("the kernels run elsewhere here")
    return request.param


@pytest.fixture
def interpreted():
    pytest.importorskip("triton")
    if not backend.interprets():
        pytest.skip("the kernels were loaded for the GPU")
    with backend.use_backend("interpret"):
        yield


@pytest.fixture
def outputs_begin_as_nan(monkeypatch):
    """An element that a kernel does not write fails the comparison."""

    def filled(make):
        def made_and_filled(*arguments, **options):
            made = make(*arguments, **options)
            floating = made.is_floating_point() or made.is_complex()
            return made.fill_(float("nan")) if floating and made.device.type != "meta" else made

        return made_and_filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Three recordings in speech/, three in noise/."""
    root = tmp_path_factory.mktemp("data")
    for folder, make in (("speech", voice), ("noise", noise)):
        (root / folder).mkdir()
        for index in range(3):
            soundfile.write(root / folder / f"{index}.wav", make(24_000, seed=index), 16_000)
    return root
