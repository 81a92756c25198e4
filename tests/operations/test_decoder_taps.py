"""The decoder's convolution before its upsampling: kernels and gradients; its formula is in test_mask_head.py."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice

from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def arguments(bands, channels, outputs, frames):
    torch.manual_seed(0)
    x, skip = randn(2, 2, frames, bands, channels)
    return x, skip, randn(3, channels, 3 * outputs)


@pytest.mark.parametrize(("bands", "channels", "outputs"), [(65, 128, 64), (1, 16, 8), (7, 33, 5), (2, 64, 43)])
@pytest.mark.parametrize("frames", [1, 2, 5, 19])
def test_kernel(target, bands, channels, outputs, frames):
    check(kernel_of("decoder_taps"), reference_of("decoder_taps"), arguments(bands, channels, outputs, frames), target)


@pytest.mark.parametrize(
    ("bands", "channels", "outputs", "frames"), [(9, 128, 64, 2), (65, 32, 8, 1), (1, 16, 8, 5), (7, 33, 5, 19)]
)
def test_gradient(target, bands, channels, outputs, frames):
    given = arguments(bands, channels, outputs, frames)
    check_gradients(kernel_of("decoder_taps"), reference_of("decoder_taps"), given, target)


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("decoder_taps"), arguments(5, 16, 4, 17), [0, 2])


def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted):
    operation = OPERATIONS["decoder_taps"]
    given = arguments(3, 129, 2, 2)
    assert "129" in operation.serves(*given)
    assert operation.pick(*given) is operation.reference


def test_rules_of_torch(interpreted):
    kernel_of("decoder_taps")
    from fastenh_kernels.operations.decoder_taps.forward import decoder_taps_operator

    given = [tensor.requires_grad_() for tensor in arguments(3, 16, 4, 2)]
    torch.library.opcheck(decoder_taps_operator, given, test_utils=RULES)
