"""Layer norm and depthwise taps over frames: formula, kernels, gradients."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice
from torch import nn

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
SHIPPED = pytest.param(19, 32, 64, 7, 3, marks=pytest.mark.slow)


def arguments(frames, bands=5, channels=16, taps=7, ahead=3, clips=2):
    torch.manual_seed(0)
    norm_weight, norm_bias, bias = 1 + 0.5 * randn(channels), randn(channels), randn(channels)
    return 1 + randn(clips, frames, bands, channels), norm_weight, norm_bias, randn(channels, taps), bias, ahead


@pytest.mark.parametrize(("taps", "ahead"), [(7, 3), (7, 0), (3, 1), (4, 3)])
def test_is_norm_and_convolution_and_residual(taps, ahead):
    x, norm_weight, norm_bias, weight, bias, ahead = arguments(6, taps=taps, ahead=ahead)
    norm, conv = nn.LayerNorm(16), nn.Conv1d(16, 16, taps, groups=16)
    norm.load_state_dict({"weight": norm_weight, "bias": norm_bias})
    conv.load_state_dict({"weight": weight.unsqueeze(1), "bias": bias})
    for band in range(5):
        frames = norm(x[:, :, band]).transpose(1, 2)
        padded = nn.functional.pad(frames, (taps - 1 - ahead, ahead))
        ours = fastenh_kernels.norm_taps(x, norm_weight, norm_bias, weight, bias, ahead)[:, :, band]
        torch.testing.assert_close(ours, x[:, :, band] + conv(padded).transpose(1, 2))


def test_gradient_of_the_reference():
    given = [a.double().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments(4, 2, 4)]
    assert torch.autograd.gradcheck(fastenh_kernels.norm_taps, given)


@pytest.mark.parametrize(
    ("frames", "bands", "channels", "taps", "ahead"),
    [(1, 5, 16, 7, 3), (2, 1, 64, 7, 3), SHIPPED, (40, 3, 32, 7, 0), (9, 2, 128, 2, 1), (17, 4, 16, 8, 7)],
)
def test_kernel_and_gradient(target, frames, bands, channels, taps, ahead):
    given = arguments(frames, bands, channels, taps, ahead)
    check(kernel_of("norm_taps"), reference_of("norm_taps"), given, target)
    check_gradients(kernel_of("norm_taps"), reference_of("norm_taps"), given, target)


@pytest.mark.parametrize(("taps", "ahead"), [(7, 3), (7, 0), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_processor(dtype, taps, ahead):
    given, cpu = arguments(9, taps=taps, ahead=ahead), OPERATIONS["norm_taps"].cpu
    check(cpu, reference_of("norm_taps"), given, ("cpu", dtype))
    check_gradients(cpu, reference_of("norm_taps"), given, ("cpu", dtype))


def test_no_clips(interpreted):
    given = arguments(3, clips=0)
    assert kernel_of("norm_taps")(*given).shape == (0, 3, 5, 16)


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("norm_taps"), arguments(17), [0, 1, 2, 3, 4])


@pytest.mark.parametrize(("channels", "taps"), [(24, 7), (8, 7), (256, 7), (16, 9), (16, 1)])
def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted, channels, taps):
    operation = OPERATIONS["norm_taps"]
    given = arguments(2, channels=channels, taps=taps, ahead=0)
    assert "the kernel takes" in operation.serves(*given)
    assert operation.pick(*given) is operation.reference


def test_rules_of_torch(interpreted):
    kernel_of("norm_taps")
    from fastenh_kernels.operations.norm_taps.forward import norm_taps_operator

    *given, ahead = arguments(3)
    torch.library.opcheck(norm_taps_operator, (*(a.requires_grad_() for a in given), ahead), test_utils=RULES)
