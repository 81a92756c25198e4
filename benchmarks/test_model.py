"""The forward pass of the shipped model beside the textbook module, in the same run."""

import pytest
import torch

from benchmarks.cases import GPU_IMPLEMENTATIONS, conditions, implementations, model, spectrum
from fastenh.evaluate.metrics import si_sdr

OURS = ("ours_fp32", "ours_bf16")  # plain PyTorch: what a CPU runs


@pytest.mark.parametrize("implementation", [*GPU_IMPLEMENTATIONS, *OURS])
@pytest.mark.parametrize("clips", [1, 4, 64])
def test_forward(timed, benchmark, device, clips, implementation):
    if implementation not in (*implementations(device), *OURS):
        pytest.skip("needs CUDA")
    if device.type == "cpu" and clips > 4:
        pytest.skip("a batch for a GPU")
    benchmark.group = f"model forward, {clips} clips of 3 s"
    given = spectrum(clips, device)
    with conditions(implementation, device):
        result = timed(model(implementation, device), given, clips=clips)
        truth = model("eager_fp32", device)(given[:1])
    ours, theirs = (torch.view_as_real(x[:1]).flatten().cpu().numpy() for x in (result, truth))
    assert si_sdr(ours, theirs) > 30  # they compute the same
