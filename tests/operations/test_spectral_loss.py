"""The distance of compressed spectra: formula, kernel, the gradient of the estimate."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def arguments(frames, bins=257, clips=2):
    torch.manual_seed(0)
    spectra = [torch.view_as_complex(randn(clips, frames, bins, 2)).transpose(1, 2) for _ in range(2)]
    for number, spectrum in enumerate(spectra):
        spectrum[:, bins // 2 + number :] *= 1e-3
        spectrum[:, number] = 0
    spectra[0][:, -1] = spectra[1][:, -1] = 0
    return *spectra, 70.0, 30.0, 0.3


def test_formula_and_gradient_of_the_reference():
    estimate, clean, _, _, power = (a.to(torch.complex128) if isinstance(a, torch.Tensor) else a for a in arguments(4))
    magnitudes = [(s.abs().square() + 1e-8).sqrt() for s in (estimate, clean)]
    powers = [m**power for m in magnitudes]
    compressed = [s * m ** (power - 1) for s, m in zip((estimate, clean), magnitudes, strict=True)]
    away, away_complex = powers[0] - powers[1], compressed[0] - compressed[1]
    expected = 2.0 * away.square().mean() + 3.0 * away_complex.abs().square().mean()
    torch.testing.assert_close(fastenh_kernels.spectral_loss(estimate, clean, 2.0, 3.0, power), expected)
    given = estimate[:, 2:9, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: fastenh_kernels.spectral_loss(s, clean[:, 2:9, :2], 2.0, 3.0, power), (given,)
    )


@pytest.mark.parametrize(("frames", "bins"), [(1, 257), (3, 65), (9, 257)])
@pytest.mark.parametrize("weights", [(70.0, 30.0), (0.0, 1.0), (1.0, 0.0)])
def test_kernel_and_gradient(target, frames, bins, weights):
    estimate, clean, _, _, power = arguments(frames, bins)
    given = estimate, clean, *weights, power
    check(kernel_of("spectral_loss"), reference_of("spectral_loss"), given, target)
    check_gradients(kernel_of("spectral_loss"), reference_of("spectral_loss"), given, target, [0])


def test_frames_side_by_side(interpreted):
    estimate, clean, *rest = arguments(3)
    ours = kernel_of("spectral_loss")(estimate.contiguous(), clean.contiguous(), *rest)
    torch.testing.assert_close(ours, reference_of("spectral_loss")(estimate, clean, *rest))


def test_equal_spectra_have_no_distance_and_no_gradient(interpreted):
    _, clean, *rest = arguments(3)
    estimate = clean.clone().requires_grad_()
    loss = kernel_of("spectral_loss")(estimate, clean, *rest)
    assert loss == 0
    assert not torch.autograd.grad(loss, estimate)[0].any()


def test_no_clips(interpreted):
    assert kernel_of("spectral_loss")(*arguments(3, clips=0)) == 0


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("spectral_loss"), list(arguments(5)), [0])


def test_a_gradient_of_the_clean_side_goes_to_the_reference(interpreted):
    operation, given = OPERATIONS["spectral_loss"], arguments(2)
    given[1].requires_grad_()
    assert "the kernel takes" in operation.serves(*given)
    assert operation.pick(*given) is operation.reference


def test_rules_of_torch(interpreted):
    kernel_of("spectral_loss")
    from fastenh_kernels.operations.spectral_loss.forward import spectral_loss_operator

    estimate, *rest = arguments(3)
    for gradient in (False, True):
        torch.library.opcheck(spectral_loss_operator, (estimate, *rest, gradient), test_utils=RULES)
