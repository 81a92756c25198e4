"""The shipped model on one thread of a CPU, beside the textbook module: 4, 10 and 60 s of audio.

pytest benchmarks/test_cpu.py --benchmark-only -s prints the table. The textbook module takes the recording whole (60 s
in pieces of 10, as its attention over minutes would be a straw man); ours cuts it into its spans, overlap included.
Implementations take turns and the quickest turn counts: the machine may be shared. Times are the processor's.
"""

import copy
import time

import pytest
import torch

from benchmarks.textbook import TextbookDPT
from fastenh import Enhancer
from fastenh.enhance.enhancer import SAMPLE_RATE
from fastenh.evaluate.metrics import si_sdr
from fastenh.models import checkpoint
from fastenh.models.frontend import SpectralModel

SECONDS, TURNS, PIECE = (4, 10, 60), {4: 6, 10: 4, 60: 1}, 10
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Textbook:
    """The model with the textbook core: (L,) -> (L,)."""

    def __init__(self, dtype: torch.dtype) -> None:
        model = checkpoint.load("dpt")[0]
        self.model = SpectralModel(TextbookDPT(copy.deepcopy(model.core)).to(dtype), model.frontend.hop).eval()

    def __call__(self, recording: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([self.model(piece[None])[0] for piece in recording.split(PIECE * SAMPLE_RATE)])


class Ours:
    """Through the Python interface."""

    def __init__(self, dtype: str) -> None:
        self.enhancer = Enhancer.from_pretrained("dpt", "cpu", dtype)

    def __call__(self, recording: torch.Tensor) -> torch.Tensor:
        return self.enhancer(recording, SAMPLE_RATE)


@pytest.fixture(scope="module")
def contenders():
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # it pads, and is slower here
    textbook = {f"textbook {name}": Textbook(dtype) for name, dtype in DTYPES.items()}
    yield textbook | {f"ours {name}": Ours(name) for name in DTYPES}
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("seconds", SECONDS)
def test_real_time_factor(benchmark, contenders, seconds):
    generator = torch.Generator().manual_seed(0)
    recording = 0.1 * torch.randn(seconds * SAMPLE_RATE, generator=generator)
    results = {name: run(recording) for name, run in contenders.items()}  # and warm up
    for name in ("ours float32", "textbook bfloat16", "ours bfloat16"):
        if seconds == SECONDS[0]:  # all in one window: they compute the same
            assert si_sdr(results[name].numpy(), results["textbook float32"].numpy()) > 25, name
    times = dict.fromkeys(contenders, float("inf"))

    def turn():
        for name, run in contenders.items():
            began = time.process_time()
            run(recording)
            times[name] = min(times[name], time.process_time() - began)

    benchmark.pedantic(turn, rounds=TURNS[seconds])
    factors = {name: took / seconds for name, took in times.items()}
    benchmark.extra_info.update({name: round(factor, 4) for name, factor in factors.items()})
    gain = {name: factors["textbook float32"] / factors[f"ours {name}"] for name in DTYPES}
    cells = " | ".join(f"{factor:.3f}" for factor in factors.values())
    print(f"\n| {seconds} s | {cells} | {gain['float32']:.2f}x | {gain['bfloat16']:.2f}x |")
