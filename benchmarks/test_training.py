"""The training step of the shipped model beside the textbook module's, in the same run."""

import pytest

from benchmarks.cases import GPU_IMPLEMENTATIONS, TrainingStep, conditions, implementations


@pytest.mark.parametrize("implementation", GPU_IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["train_step", "train_step_reference"])
@pytest.mark.parametrize("clips", [2, 64])
def test_training_step(timed, benchmark, device, clips, name, implementation):
    if implementation not in implementations(device):
        pytest.skip("needs CUDA")
    if device.type == "cpu" and clips > 2:
        pytest.skip("a batch for a GPU")
    if implementation.startswith("triton") and name != "train_step":
        pytest.skip("the reference path has no kernels")
    benchmark.group = f"training step, {clips} clips of 3 s"
    with conditions(implementation, device, gradients=True):
        step = TrainingStep(name, implementation, clips, device)
        first = step()
        last = timed(step, clips=clips, cpu_rounds=2)
    assert last < first  # it trains, always on the same clips
