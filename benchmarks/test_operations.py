"""Every operation by every implementation that can run here, at the shapes of 3 s clips."""

import pytest
import torch

from benchmarks.cases import (
    GPU_IMPLEMENTATIONS,
    TIMED,
    TIMED_IN_TRAINING,
    arguments,
    conditions,
    dtype_of,
    forward_backward,
    implementations,
    operation,
)


@pytest.mark.parametrize("implementation", GPU_IMPLEMENTATIONS)
@pytest.mark.parametrize("name", TIMED)
def test_operation(timed, benchmark, device, name, implementation):
    if implementation not in implementations(device):
        pytest.skip("needs CUDA")
    benchmark.group = name
    clips = 64 if device.type == "cuda" else 1
    given = arguments(name, clips, dtype_of(implementation), device)
    with (
        conditions(implementation, device),
        torch.autocast(device.type, torch.bfloat16, enabled="bf16" in implementation),
    ):
        result = timed(operation(name, implementation), *given, clips=clips)
    assert torch.isfinite(torch.view_as_real(result) if result.is_complex() else result).all()


@pytest.mark.parametrize("implementation", GPU_IMPLEMENTATIONS)
@pytest.mark.parametrize("name", TIMED_IN_TRAINING)
def test_forward_backward(timed, benchmark, device, name, implementation):
    if implementation not in implementations(device):
        pytest.skip("needs CUDA")
    benchmark.group = f"{name} forward+backward"
    clips = 64 if device.type == "cuda" else 1
    given = arguments(name, clips, dtype_of(implementation), device, training=True)
    with conditions(implementation, device, gradients=True):
        gradients = timed(forward_backward(name, implementation, given), clips=clips)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
