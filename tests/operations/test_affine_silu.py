"""SiLU of rows that are scaled and shifted: formula, kernel, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def arguments(frames, bands=5, channels=32, clips=2):
    torch.manual_seed(0)
    return randn(clips, frames, bands, channels), randn(2, channels)


def test_formula_and_gradient_of_the_reference():
    x, affine = (a.double().requires_grad_() for a in arguments(2, 3, 2))
    z = x * affine[0] + affine[1]
    torch.testing.assert_close(fastenh_kernels.affine_silu(x, affine), z * z.sigmoid())
    assert torch.autograd.gradcheck(fastenh_kernels.affine_silu, (x, affine))


@pytest.mark.parametrize(("frames", "bands", "channels"), [(1, 1, 16), (3, 64, 32), (17, 63, 64), (2, 5, 128)])
def test_kernel_and_gradient(target, frames, bands, channels):
    given = arguments(frames, bands, channels)
    check(kernel_of("affine_silu"), reference_of("affine_silu"), given, target)
    check_gradients(kernel_of("affine_silu"), reference_of("affine_silu"), given, target)


def test_programs_that_take_several_tiles(target, monkeypatch):
    kernel = kernel_of("affine_silu")
    from fastenh_kernels.operations.affine_silu import backward

    monkeypatch.setattr(backward, "parts_of", lambda *_: 2)
    check_gradients(kernel, reference_of("affine_silu"), arguments(9, 33), target)


def test_rows_that_do_not_lie_side_by_side(interpreted):
    x, affine = arguments(3)
    ours = kernel_of("affine_silu")(x.transpose(1, 2), affine)
    torch.testing.assert_close(ours, reference_of("affine_silu")(x.transpose(1, 2), affine))


def test_no_clips(interpreted):
    assert kernel_of("affine_silu")(*arguments(3, clips=0)).shape == (0, 3, 5, 32)


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("affine_silu"), arguments(5), [0, 1])


@pytest.mark.parametrize("channels", [8, 24, 256])
def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted, channels):
    operation, given = OPERATIONS["affine_silu"], arguments(2, channels=channels)
    assert "the kernel takes" in operation.serves(*given)
    assert operation.pick(*given) is operation.reference


def test_rules_of_torch(interpreted):
    kernel_of("affine_silu")
    from fastenh_kernels.operations.affine_silu.forward import affine_silu_operator

    torch.library.opcheck(affine_silu_operator, tuple(a.requires_grad_() for a in arguments(3)), test_utils=RULES)
