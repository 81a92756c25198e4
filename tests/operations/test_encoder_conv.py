"""The encoder's second convolution: formulas, kernels, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice
from torch import nn

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def test_it_is_a_convolution():
    for channels, bands in ((4, 9), (3, 6)):
        conv = nn.Conv2d(channels, 5, 3, stride=(2, 1), padding=1, dtype=torch.float64)
        x = torch.randn(2, 7, bands, channels, dtype=torch.float64)
        expected = conv(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        matrix = conv.weight.permute(3, 2, 1, 0).flatten(1, 2)
        torch.testing.assert_close(fastenh_kernels.encoder_conv(x, matrix, conv.bias), expected)
        torch.testing.assert_close(fastenh_kernels.encoder_conv(x, matrix, conv.bias, relu=True), expected.relu())


@pytest.mark.parametrize(("bands", "channels", "outputs"), [(129, 32, 128), (1, 4, 16), (6, 11, 24), (65, 42, 128)])
@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("relu", [False, True])
def test_kernel(target, bands, channels, outputs, frames, relu):
    torch.manual_seed(0)
    arguments = (randn(2, frames, bands, channels), randn(3, 3 * channels, outputs), randn(outputs), relu)
    check(kernel_of("encoder_conv"), reference_of("encoder_conv"), arguments, target)


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
def test_gradient(target, bands, channels, outputs, frames, relu):
    torch.manual_seed(0)
    arguments = (randn(2, frames, bands, channels), randn(3, 3 * channels, outputs), randn(outputs), relu)
    check_gradients(kernel_of("encoder_conv"), reference_of("encoder_conv"), arguments, target)


def test_gradient_is_the_same_bits_again(interpreted):
    arguments = (randn(1, 17, 5, 4), randn(3, 12, 8), randn(8), False)
    twice(kernel_of("encoder_conv"), arguments, [0, 1, 2])


def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted):
    operation = OPERATIONS["encoder_conv"]
    arguments = (randn(1, 2, 3, 43), randn(3, 129, 8), randn(8), False)
    assert "129" in operation.serves(*arguments)
    assert operation.pick(*arguments) is operation.reference


def test_rules_of_torch(interpreted):
    tensors = (randn(1, 2, 5, 4), randn(3, 12, 8), randn(8))
    kernel_of("encoder_conv")
    from fastenh_kernels.operations.encoder_conv.forward import encoder_conv_operator

    torch.library.opcheck(encoder_conv_operator, (*(t.requires_grad_() for t in tensors), True), test_utils=RULES)
