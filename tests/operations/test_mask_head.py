"""The end of the decoder: the commuted form, the form for processors, kernels, gradients."""

import pytest
import torch
import torch.nn.functional as F
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, relative, twice
from torch import nn

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS
from fastenh_kernels.operations.mask_head import cpu

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
F64 = torch.float64
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def arguments(bands, bins, channels, frames):
    torch.manual_seed(0)
    spectrum = randn(2, frames, bins, dtype=torch.complex64).transpose(1, 2)
    z, (scale, shift) = randn(2, frames, bands, 3, channels), randn(2, channels)
    return z, scale, shift, 0.2 * randn(channels), randn(1), spectrum


@pytest.mark.parametrize(("bins", "bands"), [(257, 65), (2, 1), (5, 3), (33, 9)])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_commuted_decoder_is_upsampling_then_convolution(bins, bands, frames):
    torch.manual_seed(1)
    conv, head = nn.Conv2d(6, 4, 3, padding=1, dtype=F64), nn.Conv2d(4, 1, 1, dtype=F64)
    scale, shift = torch.randn(4, dtype=F64), torch.randn(4, dtype=F64)
    x, noisy = torch.randn(2, frames, bands, 6, dtype=F64), torch.randn(2, bins, frames, dtype=torch.complex128)
    up = F.interpolate(x.permute(0, 3, 2, 1), size=(bins, frames), mode="bilinear", align_corners=False)
    affine = conv(up) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    expected = torch.sigmoid(head(affine.relu()))[:, 0] * noisy
    skip = torch.randn_like(x)
    matrix = conv.weight.permute(3, 1, 2, 0).flatten(2)
    z = fastenh_kernels.decoder_taps(x - skip, skip, matrix)
    folded = shift + conv.bias * scale
    torch.testing.assert_close(fastenh_kernels.mask_head(z, scale, folded, head.weight, head.bias, noisy), expected)
    mean, var = fastenh_kernels.upsampled_moments(z, bins)
    without_bias = conv(up) - conv.bias.view(-1, 1, 1)
    torch.testing.assert_close(mean, without_bias.mean((0, 2, 3)))
    torch.testing.assert_close(var, without_bias.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("clips", "frames", "bands", "bins"), [(1, 1, 2, 3), (2, 70, 65, 257), (1, 64, 33, 129)])
def test_on_a_processor(dtype, clips, frames, bands, bins):
    torch.manual_seed(0)
    z = torch.randn(clips, frames, bands, 3, 16, dtype=F64).to(dtype)
    vectors = [torch.randn(16, dtype=F64).to(dtype) for _ in range(3)] + [torch.randn(1).to(dtype)]
    spectrum = torch.randn(clips, bins, frames, dtype=torch.complex128)
    given_spectrum = spectrum if dtype == F64 else spectrum.to(torch.complex64)
    with torch.inference_mode():
        given = cpu.mask_head(z, *vectors, given_spectrum)
    truth = reference_of("mask_head")(z.double(), *(v.double() for v in vectors), spectrum)
    assert relative(torch.view_as_real(given).double(), torch.view_as_real(truth)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("bands", "bins", "channels"), [(65, 257, 64), (1, 2, 16), (3, 5, 16), (33, 129, 64), (9, 9, 32)]
)
@pytest.mark.parametrize("frames", [1, 3, 19])
def test_kernel(target, bands, bins, channels, frames):
    given = arguments(bands, bins, channels, frames)
    check(kernel_of("mask_head"), reference_of("mask_head"), given, target)


@pytest.mark.parametrize(
    ("bands", "bins", "channels", "frames"),
    [(65, 257, 64, 1), (33, 129, 16, 2), (1, 1, 16, 3), (1, 2, 128, 1), (3, 9, 32, 35), (3, 2, 16, 2)],
)
def test_gradient(target, bands, bins, channels, frames):
    given = arguments(bands, bins, channels, frames)
    check_gradients(kernel_of("mask_head"), reference_of("mask_head"), given, target)
    if frames == 1:
        check_gradients(kernel_of("mask_head"), reference_of("mask_head"), given, target, wanted=[0, 3])


def test_gradient_is_the_same_bits_again(interpreted):
    twice(kernel_of("mask_head"), arguments(5, 17, 16, 17), range(6))


def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted):
    operation = OPERATIONS["mask_head"]
    given = arguments(3, 5, 6, 2)
    assert "6" in operation.serves(*given)
    assert operation.pick(*given) is operation.reference


def test_rules_of_torch(interpreted):
    *real, spectrum = arguments(3, 3, 16, 3)
    torch.library.opcheck(kernel_of("mask_head"), (*(t.requires_grad_() for t in real), spectrum), test_utils=RULES)
