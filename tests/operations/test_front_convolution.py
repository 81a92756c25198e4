"""The first convolution of dpt_complex in training: formula, kernels, the gradient of its weight."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice
from test_band_convolution import joined

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def arguments(frames, channels=32, ahead=1, clips=2, bins=257):
    torch.manual_seed(0)
    spectrum = torch.view_as_complex(randn(clips, frames, bins, 2)).transpose(1, 2)
    spectrum[:, 7] = 0
    return spectrum, 0.2 * randn(channels, 3, 8, 3), 0.3, ahead


def test_is_the_front_without_bias_and_activation():
    spectrum, weight, power, ahead = arguments(5)
    y, mean, var = fastenh_kernels.front_convolution(spectrum, weight, power, ahead)
    bias = torch.linspace(-1, 1, 32)
    front = fastenh_kernels.compressed_front(spectrum, weight, bias, power, ahead)
    torch.testing.assert_close(torch.nn.functional.silu(y + bias), front)
    torch.testing.assert_close((mean, var), (y.mean((0, 1, 2)), y.var((0, 1, 2), correction=0)))


@pytest.mark.parametrize(("frames", "channels", "ahead"), [(1, 32, 1), (2, 16, 0), (3, 32, 2), (9, 32, 1)])
def test_kernel_and_gradient(target, frames, channels, ahead):
    given = arguments(frames, channels, ahead)
    check(joined(kernel_of("front_convolution")), joined(reference_of("front_convolution")), given, target)
    check_gradients(kernel_of("front_convolution"), reference_of("front_convolution"), given, target, [1])


def test_no_clips(interpreted):
    assert kernel_of("front_convolution")(*arguments(3, clips=0))[0].shape == (0, 3, 64, 32)


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("front_convolution"), arguments(5), [1])


def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted):
    operation = OPERATIONS["front_convolution"]
    wanted = arguments(2)
    wanted[0].requires_grad_()
    for given in (arguments(2, bins=129), arguments(2, channels=24), wanted):
        assert "the kernel takes" in operation.serves(*given)
        assert operation.pick(*given) is operation.reference


def test_rules_of_torch(interpreted):
    kernel_of("front_convolution")
    from fastenh_kernels.operations.front_convolution.forward import front_convolution_operator

    spectrum, weight, power, ahead = arguments(3)
    given = spectrum, weight.requires_grad_(), power, ahead, torch.float32
    torch.library.opcheck(front_convolution_operator, given, test_utils=RULES)
