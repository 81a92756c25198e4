"""The first convolution: formulas, kernels, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice
from torch import nn

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def spectrum(clips, bins, frames, dtype=torch.complex64):
    """Bins side by side, as ``torch.stft`` lays them."""
    return randn(clips, frames, bins, dtype=dtype).transpose(1, 2)


def plain(noisy, weight, bias, relu):
    """PyTorch convolves in the dtype of the features, which is that of the spectrum, not of the weight."""
    wide = torch.float64 if noisy.dtype == torch.complex128 else torch.float32
    return reference_of("encoder_front")(noisy, weight.to(wide), bias.to(wide), relu).to(weight.dtype)


def test_it_is_log_magnitude_then_convolution():
    conv = nn.Conv2d(1, 8, 3, stride=(2, 1), padding=1, dtype=torch.float64)
    noisy = spectrum(2, 257, 11, torch.complex128)
    expected = conv(torch.log1p(noisy.abs())[:, None]).permute(0, 3, 2, 1)
    torch.testing.assert_close(fastenh_kernels.encoder_front(noisy, conv.weight, conv.bias), expected)


@pytest.mark.parametrize(("bins", "channels"), [(257, 32), (1, 8), (2, 16), (66, 4)])
@pytest.mark.parametrize(("frames", "relu"), [(1, True), (2, False), (5, True), (11, False)])
def test_kernel(target, bins, channels, frames, relu):
    torch.manual_seed(0)
    noisy = spectrum(2, bins, frames)
    noisy[:, :, 0] *= 1e-3  # where log(1 + m) loses digits
    check(kernel_of("encoder_front"), plain, (noisy, randn(channels, 1, 3, 3), randn(channels), relu), target)


@pytest.mark.parametrize(
    ("bins", "channels", "frames", "relu"),
    [(257, 32, 1, False), (1, 8, 1, True), (2, 128, 19, False), (66, 4, 5, True)],
)
def test_gradient(target, bins, channels, frames, relu):
    torch.manual_seed(0)
    arguments = (spectrum(2, bins, frames), randn(channels, 1, 3, 3), randn(channels), relu)
    check_gradients(kernel_of("encoder_front"), plain, arguments, target, wanted=[1, 2])


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("encoder_front"), (spectrum(2, 17, 17), randn(4, 1, 3, 3), randn(4), False), [1, 2])


def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted):
    operation = OPERATIONS["encoder_front"]
    assert "6" in operation.serves(spectrum(1, 5, 2), randn(6, 1, 3, 3), randn(6), False)
    of_spectrum = (spectrum(1, 5, 2).requires_grad_(), randn(4, 1, 3, 3), randn(4), False)
    assert operation.pick(*of_spectrum) is operation.reference


def test_rules_of_torch(interpreted):
    arguments = (spectrum(1, 5, 3), randn(4, 1, 3, 3).requires_grad_(), randn(4).requires_grad_(), False, torch.float32)
    kernel_of("encoder_front")
    from fastenh_kernels.operations.encoder_front.forward import encoder_front_operator

    torch.library.opcheck(encoder_front_operator, arguments, test_utils=RULES)
