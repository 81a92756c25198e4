"""Convolutions over bands that normalise what they read: formula, kernels, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice
from torch import nn

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
KINDS = ("three bands", "mix", "first mix")


def arguments(kind, frames, bands=64, channels=32, clips=2, mean=0.0):
    torch.manual_seed(0)
    x, skip = randn(2, clips, frames, bands, channels) + mean
    affine, skip_affine = 0.5 * randn(2, 2, channels)
    if kind == "three bands":
        return x, affine, 0.2 * randn(channels, channels, 3), None, None
    weight = 0.2 * randn(channels, 2 * channels, 1)
    return x, None if kind == "first mix" else affine, weight, skip, skip_affine


def joined(function):
    """One tensor of the three results, the moments as heavy as the convolution."""

    def call(*given):
        y, mean, var = function(*given)
        times = y.shape[:3].numel()
        return torch.cat([y.flatten().to(mean.dtype), mean.repeat(times), var.repeat(times)])

    return call


def test_is_batch_norm_activation_and_convolution():
    """A batch norm by the moments that a convolution gives, before the next."""
    x, affine, weight, _, _ = arguments("three bands", 5)
    _, _, mix, skip, skip_affine = arguments("mix", 5)
    norm = nn.BatchNorm2d(32)
    nn.init.normal_(norm.weight)
    y, mean, var = fastenh_kernels.band_convolution(x, affine, weight)
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    ours, _, _ = fastenh_kernels.band_convolution(
        y, torch.stack([scale, norm.bias - mean * scale]), mix, skip, skip_affine
    )
    rows = nn.functional.silu(x * affine[0] + affine[1]).permute(0, 3, 2, 1)  # (B, C, F, T)
    normalised = nn.functional.silu(norm(nn.functional.conv2d(rows, weight.unsqueeze(3), padding=(1, 0))))
    both = torch.cat([normalised.permute(0, 3, 2, 1), nn.functional.silu(skip * skip_affine[0] + skip_affine[1])], -1)
    torch.testing.assert_close(ours, both @ mix[..., 0].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_reference(kind):
    given = [a if a is None else a.double().requires_grad_() for a in arguments(kind, 2, 3, 2, 1)]
    assert torch.autograd.gradcheck(fastenh_kernels.band_convolution, given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "bands", "channels"), [(1, 64, 32), (3, 16, 32), (9, 32, 16)])
def test_kernel_and_gradient(target, kind, frames, bands, channels):
    given = arguments(kind, frames, bands, channels)
    kernel, plain = (joined(f("band_convolution")) for f in (kernel_of, reference_of))
    check(kernel, plain, given, target)
    check_gradients(kernel_of("band_convolution"), reference_of("band_convolution"), given, target)


def test_programs_that_take_several_frames(target, monkeypatch):
    kernel = kernel_of("band_convolution")
    from fastenh_kernels.operations.band_convolution import backward, forward

    for module in (forward, backward):
        monkeypatch.setattr(module, "parts_of", lambda *_: 3)
    given = arguments("mix", 5)
    check(joined(kernel), joined(reference_of("band_convolution")), given, target)
    check_gradients(kernel, reference_of("band_convolution"), given, target)


@pytest.mark.parametrize("place", [1, 2])
def test_moments_far_from_zero(target, place):
    """Where a difference of sums of squares has no digits left."""
    kernel, plain = kernel_of("band_convolution"), reference_of("band_convolution")
    given = arguments("first mix", 3, mean=300.0)
    check(lambda *g: kernel(*g)[place], lambda *g: plain(*g)[place], given, target)


def test_no_clips(interpreted):
    y, mean, _ = kernel_of("band_convolution")(*arguments("mix", 3, clips=0))
    assert y.shape == (0, 3, 64, 32)
    assert mean.shape == (32,)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_same_bits_again(interpreted, kind):
    given = arguments(kind, 2)
    twice(kernel_of("band_convolution"), given, [place for place, a in enumerate(given) if a is not None])


@pytest.mark.parametrize(("bands", "channels"), [(64, 24), (48, 32), (64, 64)])
def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted, bands, channels):
    operation, given = OPERATIONS["band_convolution"], arguments("mix", 2, bands, channels)
    assert "the kernel takes" in operation.serves(*given)
    assert operation.pick(*given) is operation.reference


@pytest.mark.parametrize("kind", KINDS)
def test_rules_of_torch(interpreted, kind):
    kernel_of("band_convolution")
    from fastenh_kernels.operations.band_convolution.forward import band_convolution_operator

    given = [a if a is None else a.requires_grad_() for a in arguments(kind, 3)]
    torch.library.opcheck(band_convolution_operator, tuple(given), test_utils=RULES)
