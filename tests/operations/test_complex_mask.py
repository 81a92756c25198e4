"""The complex mask: formulas, kernels, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of

import fastenh_kernels

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
F64 = torch.float64
KINDS = pytest.mark.parametrize(
    ("activation", "complex_mask"),
    [("none", False), ("sigmoid", False), ("tanh", False), ("none", True), ("tanh", True)],
)


def spectrum(*shape):
    return randn(*shape, dtype=torch.complex64)


def test_formulas():
    noisy, real = randn(2, 5, 3, dtype=torch.complex128), 4 * randn(2, 5, 3, dtype=F64)
    torch.testing.assert_close(fastenh_kernels.complex_mask(real, noisy, "sigmoid"), torch.sigmoid(real) * noisy)
    torch.testing.assert_close(fastenh_kernels.complex_mask(real, noisy, "none"), real * noisy)
    mask = 4 * randn(2, 5, 3, dtype=torch.complex128)
    mask[0, 0, 0] = 0
    bounded = fastenh_kernels.complex_mask(mask, torch.ones_like(noisy), "tanh")
    assert (bounded.abs() < 1).all()
    torch.testing.assert_close(bounded.abs(), torch.tanh(mask.abs()))
    torch.testing.assert_close(bounded.angle(), mask.angle())
    with pytest.raises(ValueError, match="complex mask"):
        fastenh_kernels.complex_mask(mask, noisy, "sigmoid")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (1, 257, 9)])
@KINDS
def test_kernel(target, shape, activation, complex_mask):
    torch.manual_seed(0)
    mask = spectrum(*shape) if complex_mask else 4 * randn(*shape)
    mask.view(-1)[0] = 1e-4  # where tanh(m) / m loses digits
    check(kernel_of("complex_mask"), reference_of("complex_mask"), (mask, spectrum(*shape), activation), target)


def test_any_strides(target):
    mask, noisy = randn(3, 8, 10).transpose(0, 2), spectrum(10, 16, 6)[:, ::2, ::2]
    assert not mask.is_contiguous()
    assert not noisy.is_contiguous()
    check(kernel_of("complex_mask"), reference_of("complex_mask"), (mask, noisy, "sigmoid"), target)


def test_nothing_in_nothing_out():
    assert kernel_of("complex_mask")(randn(0, 3, 5), spectrum(0, 3, 5), "none").numel() == 0


@KINDS
def test_gradient(target, activation, complex_mask):
    torch.manual_seed(0)
    mask = spectrum(2, 65, 9) if complex_mask else 4 * randn(2, 65, 9)
    mask.view(-1)[:3] = torch.tensor([1e-4, 0.09, 0.11])  # where tanh(m) / m and its slope lose digits
    for noisy in (spectrum(2, 65, 9), spectrum(2, 9, 130).mT[:, ::2]):
        for wanted in ([0, 1], [0]):
            arguments = (mask, noisy, activation)
            check_gradients(kernel_of("complex_mask"), reference_of("complex_mask"), arguments, target, wanted)


def test_rules_of_torch(interpreted):
    arguments = (randn(1, 5, 3).requires_grad_(), spectrum(1, 5, 3).requires_grad_(), "sigmoid")
    torch.library.opcheck(kernel_of("complex_mask"), arguments, test_utils=RULES)
