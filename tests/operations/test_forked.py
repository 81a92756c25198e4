"""Operations that give what they read to another reader, too, and add the gradient that comes back from there."""

import pytest
import torch
from parity import RULES, check, check_gradients, gradients, kernel_of, randn, reference_of, relative, results, twice

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
CASES = ("band_convolution", "band_convolution, mix", "band_convolution, first mix", "band_map", "band_map, as it is")


def case(name, frames=3, channels=32):
    """The name of the operation and its arguments, without the one that forks."""
    torch.manual_seed(0)
    operation, _, kind = name.partition(", ")
    x, skip = randn(2, 2, frames, 32, channels)
    affine = None if kind in ("first mix", "as it is") else 0.5 * randn(2, channels)
    if operation == "band_map":
        return operation, (x, affine, 0.2 * randn(16, 32), 0.2 * randn(64, channels), randn(16, 64))
    if not kind:
        return operation, (x, affine, 0.2 * randn(channels, channels, 3), None, None)
    return operation, (x, affine, 0.2 * randn(channels, 2 * channels, 1), skip, 0.5 * randn(2, channels))


def by_autograd(function):
    """The other reader takes x itself."""

    def call(*given):
        return *results(function, given), given[0]

    return call


def result(function, place):
    return lambda *given: function(*given)[place]


@pytest.mark.parametrize("name", CASES)
def test_kernel_and_gradient(target, name):
    operation, given = case(name)
    kernel, plain = kernel_of(operation), reference_of(operation)
    for place in range(len(plain(*given, True))):
        check(result(kernel, place), result(plain, place), (*given, True), target)
    check_gradients(kernel, plain, (*given, True), target)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("function", [kernel_of, reference_of])
def test_gradients_are_those_that_autograd_adds(interpreted, name, function):
    operation, given = case(name)
    wanted = [place for place, a in enumerate(given) if a is not None]
    cotangents = [torch.randn_like(out) for out in results(by_autograd(reference_of(operation)), given)]
    expected = gradients(by_autograd(function(operation)), given, wanted, cotangents)
    found = gradients(lambda *g: function(operation)(*g, True), given, wanted, cotangents)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found[0], gradients(function(operation), given, wanted, cotangents[:-1])[0])


@pytest.mark.parametrize("name", ["band_convolution", "band_map"])
def test_other_reader_twice_or_not_at_all(interpreted, name):
    operation, (x, *rest) = case(name)
    x.requires_grad_()
    first, *_, rows = kernel_of(operation)(x, *rest, True)
    (once,) = torch.autograd.grad(first.square().sum(), x, retain_graph=True)
    (both,) = torch.autograd.grad(first.square().sum() + (2 * rows).sum() + (rows * 3).sum(), x)
    torch.testing.assert_close(both, once + 5)


@pytest.mark.parametrize("name", ["band_convolution", "band_map"])
def test_gradients_are_found_for_those_who_want_one(interpreted, name):
    operation, given = case(name)
    x, weight = given[0], given[2]
    for wanted in ((), (x,), (weight,)):
        for tensor in (x, weight):
            tensor.requires_grad_(any(tensor is one for one in wanted))
        first, *_, rows = kernel_of(operation)(*given, True)
        assert torch.equal(rows, x)
        assert first.requires_grad == bool(wanted)
        if wanted:
            (found,) = torch.autograd.grad(first.sum() + rows.sum(), wanted)
            assert found.isfinite().all()
    with torch.no_grad():
        assert not any(out.requires_grad for out in kernel_of(operation)(*given, True))


@pytest.mark.parametrize("name", ["band_convolution", "band_map"])
def test_mixed_precision(interpreted, name):
    """The rows come back as they are read, in 16 bit; the gradient of those in float32 is in float32."""
    operation, (x, *rest) = case(name)
    x.requires_grad_()
    with torch.autocast("cpu", torch.float16):
        first, *_, rows = kernel_of(operation)(x, *rest, True)
    assert rows.dtype == torch.float16
    (found,) = torch.autograd.grad(first.sum() + rows.float().square().sum(), x)
    first, *_, rows = reference_of(operation)(x, *rest, True)
    (expected,) = torch.autograd.grad(first.sum() + rows.square().sum(), x)
    assert found.dtype == torch.float32
    assert relative(found, expected) < 2e-3


@pytest.mark.parametrize("name", ["band_convolution", "band_map"])
def test_gradient_is_the_same_bits_again(interpreted, name):
    operation, given = case(name)
    twice(lambda *g: kernel_of(operation)(*g, True), list(given), [0, 1, 2])


@pytest.mark.parametrize("name", CASES)
def test_rules_of_torch_for_the_gradient(interpreted, name):
    """The operator of the gradient by itself, with a gradient to add."""
    operation, given = case(name)
    kernel_of(operation)
    if operation == "band_map":
        from fastenh_kernels.operations.band_map.backward import band_map_backward as operator

        x, affine, bands, weight, added = given
        arguments = randn(*x.shape[:2], *added.shape), x, affine, bands, weight, randn(*x.shape)
    else:
        from fastenh_kernels.operations.band_convolution.backward import band_convolution_backward as operator

        x = given[0]
        arguments = randn(*x.shape), randn(2, x.shape[3]), randn(*x.shape), *given, randn(*x.shape)
    torch.library.opcheck(operator, arguments, test_utils=[rule for rule in RULES if "autograd" not in rule])
