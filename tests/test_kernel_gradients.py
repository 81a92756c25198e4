"""Gradients of the kernels around the transformer layers against float64, every input and parameter.

The judge, the floors and the devices are those of parity.py.
"""

import pytest
import torch
from parity import FLOORS, as_double, check, randn, relative, rounded

pytest.importorskip("triton")
import fastenh_kernels

from fastenh.ops import operators, reference

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")


def gradients(function, arguments, wanted, cotangents):
    """Of the arguments at the places ``wanted``."""
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    for place in wanted:
        arguments[place].requires_grad_()
    outs = results(function, arguments)
    cotangents = [c.to(out) for c, out in zip(cotangents, outs, strict=True)]
    return torch.autograd.grad(outs, [arguments[place] for place in wanted], cotangents)


def results(function, arguments):
    out = function(*arguments)
    return out if isinstance(out, tuple) else (out,)


def check_gradients(ours, plain, arguments, target, wanted=None):
    """Every gradient of ``ours`` against that of ``plain``, on arguments rounded to the dtype under test."""
    device, dtype = target
    arguments = [rounded(a, dtype) for a in arguments]
    wanted = wanted or [place for place, a in enumerate(arguments) if isinstance(a, torch.Tensor)]
    cotangents = [torch.randn_like(out) for out in results(plain, arguments)]
    truth = gradients(plain, list(map(as_double, arguments)), wanted, cotangents)
    theirs = gradients(plain, arguments, wanted, cotangents)
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    own = gradients(ours, moved, wanted, cotangents)
    for place, gradient, reference_gradient, true in zip(wanted, own, theirs, truth, strict=True):
        assert gradient.dtype == reference_gradient.dtype
        error, error_of_reference = relative(gradient, true), relative(reference_gradient, true)
        assert error <= 1.5 * error_of_reference + FLOORS[dtype], (place, error, error_of_reference)


def twice(function, arguments, wanted):
    """The same step again gives the same bits."""
    cotangents = [torch.randn_like(out) for out in results(function, arguments)]
    first, second = (gradients(function, arguments, wanted, cotangents) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    ("bands", "channels", "outputs", "frames"), [(9, 128, 64, 2), (65, 32, 8, 1), (1, 16, 8, 5), (7, 33, 5, 19)]
)
def test_gradient_of_decoder_taps(target, bands, channels, outputs, frames):
    torch.manual_seed(0)
    x, skip = randn(2, 2, frames, bands, channels)
    arguments = (x, skip, randn(3, channels, 3 * outputs))
    check_gradients(operators.decoder_taps, reference.decoder_taps, arguments, target)


@pytest.mark.parametrize(
    ("bands", "channels", "outputs", "frames", "relu"),
    [
        (13, 32, 128, 2, False),
        (129, 8, 16, 1, True),
        (1, 4, 16, 5, False),
        (6, 11, 24, 1, True),
        (2, 42, 100, 9, False),
    ],
)
def test_gradient_of_encoder_conv(target, bands, channels, outputs, frames, relu):
    torch.manual_seed(0)
    arguments = (randn(2, frames, bands, channels), randn(3, 3 * channels, outputs), randn(outputs), relu)
    check_gradients(operators.encoder_conv, reference.encoder_conv, arguments, target)


@pytest.mark.parametrize(
    ("bins", "channels", "frames", "relu"),
    [(257, 32, 1, False), (1, 8, 1, True), (2, 128, 19, False), (66, 4, 5, True)],
)
def test_gradient_of_encoder_front(target, bins, channels, frames, relu):
    torch.manual_seed(0)
    spectrum = randn(2, frames, bins, dtype=torch.complex64).transpose(1, 2)

    def plain(spectrum, weight, bias, relu):  # torch convolves in the dtype of the features, those of the spectrum
        wide = torch.float64 if spectrum.dtype == torch.complex128 else torch.float32
        return reference.encoder_front(spectrum, weight.to(wide), bias.to(wide), relu).to(weight.dtype)

    arguments = (spectrum, randn(channels, 1, 3, 3), randn(channels), relu)
    check_gradients(operators.encoder_front, plain, arguments, target, wanted=[1, 2])


@pytest.mark.parametrize(
    ("bands", "bins", "channels", "frames"),
    [(65, 257, 64, 1), (33, 129, 16, 2), (1, 1, 16, 3), (1, 2, 128, 1), (3, 9, 32, 35), (3, 2, 16, 2)],
)
def test_gradient_of_mask_head(target, bands, bins, channels, frames):
    torch.manual_seed(0)
    spectrum = randn(2, frames, bins, dtype=torch.complex64).transpose(1, 2)
    z, (scale, shift) = randn(2, frames, bands, 3, channels), randn(2, channels)
    arguments = (z, scale, shift, 0.2 * randn(channels), randn(1), spectrum)
    check_gradients(operators.mask_head, reference.mask_head, arguments, target)
    if frames == 1:
        check_gradients(operators.mask_head, reference.mask_head, arguments, target, wanted=[0, 3])


@pytest.mark.parametrize(
    ("bands", "bins", "channels", "frames"),
    [(65, 257, 64, 1), (65, 257, 16, 2), (1, 1, 16, 3), (1, 2, 128, 1), (9, 9, 32, 35), (3, 2, 16, 2)],
)
@pytest.mark.parametrize("mean", [0, 300])
def test_upsampled_moments(target, bands, bins, channels, frames, mean):
    """Means far from zero, too, where a difference of sums of squares has no digits left; and the gradients."""
    torch.manual_seed(0)
    arguments = (randn(2, frames, bands, 3, channels) + mean, bins)
    for place in (0, 1):
        check(
            lambda z, bins, place=place: operators.upsampled_moments(z, bins)[place],
            lambda z, bins, place=place: reference.upsampled_moments(z, bins)[place],
            arguments,
            target,
        )
    near = (arguments[0] - mean + 1, bins)
    check_gradients(operators.upsampled_moments, reference.upsampled_moments, near, target)


def test_moments_of_parts_are_those_of_the_whole():
    values = 1e4 + randn(7, 5, 3).double()
    parts = [values[:2].flatten(0, 1), values[2:3].flatten(0, 1), values[3:].flatten(0, 1)]
    counts = torch.tensor([[float(len(part))] for part in parts]).double()
    means = torch.stack([part.mean(0) for part in parts])
    squares = torch.stack([(part - part.mean(0)).square().sum(0) for part in parts])
    mean, var = fastenh_kernels.combined_moments(counts, means, squares)
    torch.testing.assert_close(mean, values.mean((0, 1)))
    torch.testing.assert_close(var, values.var((0, 1), correction=0))


@pytest.mark.parametrize(
    ("activation", "complex_mask"),
    [("none", False), ("sigmoid", False), ("tanh", False), ("none", True), ("tanh", True)],
)
def test_gradient_of_complex_mask(target, activation, complex_mask):
    torch.manual_seed(0)
    mask = randn(2, 65, 9, dtype=torch.complex64) if complex_mask else 4 * randn(2, 65, 9)
    mask.view(-1)[:3] = torch.tensor([1e-4, 0.09, 0.11])  # where tanh(m) / m and its slope lose digits
    for spectrum in (randn(2, 65, 9, dtype=torch.complex64), randn(2, 9, 130, dtype=torch.complex64).mT[:, ::2]):
        for wanted in ([0, 1], [0]):
            arguments = (mask, spectrum, activation)
            check_gradients(operators.complex_mask, reference.complex_mask, arguments, target, wanted)


def test_gradients_are_the_same_bits_again(interpreted):
    spectrum = randn(2, 17, 17, dtype=torch.complex64).transpose(1, 2)
    head = (randn(2, 17, 5, 3, 16), *randn(3, 16), randn(1), spectrum)
    twice(operators.mask_head, head, range(6))
    twice(operators.upsampled_moments, (head[0], 17), [0])
    twice(operators.encoder_front, (spectrum, randn(4, 1, 3, 3), randn(4), False), [1, 2])
    twice(operators.decoder_taps, (*randn(2, 1, 17, 5, 16), randn(3, 16, 12)), [0, 2])
    twice(operators.encoder_conv, (randn(1, 17, 5, 4), randn(3, 12, 8), randn(8), False), [0, 1, 2])


def test_operators_with_gradients_keep_the_rules_of_torch(interpreted):
    def grad(*shape, dtype=torch.float32):
        return randn(*shape, dtype=dtype).requires_grad_()

    spectrum = randn(1, 5, 3, dtype=torch.complex64)
    for operator, arguments in {
        operators.complex_mask: (grad(1, 5, 3), grad(1, 5, 3, dtype=torch.complex64), "sigmoid"),
        operators.encoder_front: (spectrum, grad(4, 1, 3, 3), grad(4), False),
        operators.decoder_taps: (grad(1, 2, 3, 16), grad(1, 2, 3, 16), grad(3, 16, 12)),
        operators.encoder_conv: (grad(1, 2, 5, 4), grad(3, 12, 8), grad(8), True),
        operators.upsampled_moments: (grad(1, 2, 3, 3, 16), 9),
        operators.mask_head: (grad(1, 3, 3, 3, 16), grad(16), grad(16), grad(16), grad(1), spectrum),
    }.items():
        torch.library.opcheck(operator, arguments, test_utils=CHECKS)
