"""A linear map over bands and one over channels: formula, kernel, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
SHAPES = [(64, 32, 32, 64), (32, 64, 64, 32), (16, 64, 32, 16), (32, 32, 32, 32)]  # bands and channels, in and out


def arguments(frames, bands=64, channels=32, fewer=32, width=64, active=True, clips=2):
    torch.manual_seed(0)
    affine = randn(2, channels) if active else None
    matrices = 0.2 * randn(fewer, bands), 0.2 * randn(width, channels)
    return randn(clips, frames, bands, channels), affine, *matrices, randn(fewer, width)


def test_formula_and_gradient_of_the_reference():
    x, affine, bands, weight, added = (a.double().requires_grad_() for a in arguments(2, 4, 3, 2, 5))
    z = x * affine[0] + affine[1]
    expected = torch.einsum("nm,btmc,wc->btnw", bands, z * z.sigmoid(), weight) + added
    torch.testing.assert_close(fastenh_kernels.band_map(x, affine, bands, weight, added), expected)
    torch.testing.assert_close(fastenh_kernels.band_map(x, None, bands, weight, added), bands @ x @ weight.T + added)
    assert torch.autograd.gradcheck(fastenh_kernels.band_map, (x, affine, bands, weight, added))


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frames", [1, 5])
def test_kernel_and_gradient(target, frames, shape, active):
    given = arguments(frames, *shape, active=active)
    check(kernel_of("band_map"), reference_of("band_map"), given, target)
    check_gradients(kernel_of("band_map"), reference_of("band_map"), given, target)


def test_programs_that_take_several_frames(target, monkeypatch):
    kernel = kernel_of("band_map")
    from fastenh_kernels.operations.band_map import backward, forward

    for module in (backward, forward):
        monkeypatch.setattr(module, "parts_of", lambda *_: 2)
    check(kernel, reference_of("band_map"), arguments(5), target)
    check_gradients(kernel, reference_of("band_map"), arguments(5), target)


def test_no_clips(interpreted):
    assert kernel_of("band_map")(*arguments(3, clips=0)).shape == (0, 3, 32, 64)


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("band_map"), list(arguments(5)), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("shape", [(65, 32, 32, 64), (64, 8, 32, 64), (64, 32, 33, 64), (64, 32, 32, 128)])
def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted, shape):
    operation, given = OPERATIONS["band_map"], arguments(2, *shape)
    assert "the kernel takes" in operation.serves(*given)
    assert operation.pick(*given) is operation.reference


@pytest.mark.parametrize("active", [True, False])
def test_rules_of_torch(interpreted, active):
    kernel_of("band_map")
    from fastenh_kernels.operations.band_map.forward import band_map_operator

    given = [a if a is None else a.requires_grad_() for a in arguments(3, active=active)]
    torch.library.opcheck(band_map_operator, tuple(given), test_utils=RULES)
