"""Gradients of the kernels around the transformer layers against float64, every input and parameter.

The judge, the floors and the devices are those of parity.py.
"""

import pytest
import torch
from parity import FLOORS, as_double, randn, relative, rounded

pytest.importorskip("triton")
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


def test_gradients_of_convolutions_are_the_same_bits_again(interpreted):
    twice(operators.decoder_taps, (*randn(2, 3, 30, 5, 16), randn(3, 16, 12)), [0, 2])
    twice(operators.encoder_conv, (randn(3, 30, 5, 4), randn(3, 12, 8), randn(8), False), [0, 1, 2])


def test_operators_with_gradients_keep_the_rules_of_torch(interpreted):
    def grad(*shape):
        return randn(*shape).requires_grad_()

    for operator, arguments in {
        operators.decoder_taps: (grad(1, 2, 3, 16), grad(1, 2, 3, 16), grad(3, 16, 12)),
        operators.encoder_conv: (grad(1, 2, 5, 4), grad(3, 12, 8), grad(8), True),
    }.items():
        torch.library.opcheck(operator, arguments, test_utils=CHECKS)
