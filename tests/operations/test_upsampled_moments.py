"""Batch statistics of the upsampled convolution: formulas, kernels, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice

import fastenh_kernels
from fastenh_kernels import backend
from fastenh_kernels.operation import OPERATIONS
from fastenh_kernels.operations.upsampled_moments import cpu

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def test_gradient_of_the_reference():
    z = torch.randn(1, 2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    for function in (lambda z: fastenh_kernels.upsampled_moments(z, 9), lambda z: cpu.upsampled_moments(z, 9)):
        assert torch.autograd.gradcheck(function, z)


def test_on_a_processor():
    arguments = (randn(2, 3, 5, 3, 4), 17)
    check_gradients(cpu.upsampled_moments, reference_of("upsampled_moments"), arguments, ("cpu", torch.float32))


@pytest.mark.parametrize(
    ("bands", "bins", "channels", "frames"),
    [(65, 257, 64, 1), (65, 257, 16, 2), (1, 1, 16, 3), (1, 2, 128, 1), (9, 9, 32, 35), (3, 2, 16, 2)],
)
@pytest.mark.parametrize("mean", [0, 300])
def test_kernel_and_gradient(target, bands, bins, channels, frames, mean):
    """Means far from zero, too, where a difference of sums of squares has no digits left; and the gradients."""
    torch.manual_seed(0)
    kernel, plain = kernel_of("upsampled_moments"), reference_of("upsampled_moments")
    arguments = (randn(2, frames, bands, 3, channels) + mean, bins)
    for place in (0, 1):
        functions = (lambda z, bins, f=f, place=place: f(z, bins)[place] for f in (kernel, plain))
        check(*functions, arguments, target)
    check_gradients(kernel, plain, (arguments[0] - mean + 1, bins), target)


@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("sizes", [(2, 1, 4), (3,) * 70])
def test_moments_of_parts_are_those_of_the_whole(channels, sizes):
    """Of few parts and of more than are read at a time; the first one is unlike the others."""
    kernel_of("upsampled_moments")
    from fastenh_kernels.shared.moments import combined_moments

    torch.manual_seed(0)
    device = "cpu" if backend.interprets() else "cuda"
    values = 100 + randn(sum(sizes), 5, channels, dtype=torch.float64)
    values[: sizes[0]] += 3
    parts = [part.flatten(0, 1) for part in values.split(sizes)]
    rows = [[p.mean(0), (p - p.mean(0)).square().sum(0), torch.tensor([float(len(p))])] for p in parts]
    mean, var = combined_moments(torch.stack([torch.cat(row) for row in rows]).to(device, torch.float32))
    torch.testing.assert_close(mean.cpu(), values.mean((0, 1)).float())
    torch.testing.assert_close(var.cpu(), values.var((0, 1), correction=0).float(), rtol=1e-5, atol=0)


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("upsampled_moments"), (randn(2, 17, 5, 3, 16), 17), [0])


def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted):
    operation = OPERATIONS["upsampled_moments"]
    for channels in (6, 8):
        arguments = (randn(1, 2, 3, 3, channels), 9)
        assert str(channels) in operation.serves(*arguments)
        assert operation.pick(*arguments) is operation.reference


def test_rules_of_torch(interpreted):
    arguments = (randn(1, 2, 3, 3, 16).requires_grad_(), 9)
    torch.library.opcheck(kernel_of("upsampled_moments"), arguments, test_utils=RULES)
