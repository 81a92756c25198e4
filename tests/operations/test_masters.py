"""Parameters in float32 under autocast: what kernels sum in float32 reaches them as it is."""

import pytest
import torch
from parity import kernel_of, results

from fastenh_kernels.examples import Inputs, leaves
from fastenh_kernels.operation import OPERATIONS, tensors_of

CASES = {
    "encoder_front": "training", "encoder_conv": "training", "axis_layer": "dpt_complex, time", "decoder_taps": "",
    "norm_taps": "", "mask_head": "", "band_convolution": "mix", "front_convolution": "", "affine_silu": "",
}  # fmt: skip
CLIPS, FRAMES = 2, 3


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_parameters_are_not_rounded(target, name):
    """Hardly any number summed in float32 is one of 16 bit by chance; all are after a cast. (2^-13 of them in float16,
    and those that end in zeros.)"""
    device, dtype = target
    if dtype == torch.float32:
        pytest.skip("nothing is rounded")
    ours = kernel_of(name)
    inputs = Inputs(torch.device(device), torch.float32, CLIPS, FRAMES)
    (given,) = (e.arguments for e in OPERATIONS[name].examples(inputs) if e.label == CASES[name])
    given = leaves(given)
    parameters = [t for t in tensors_of(given) if t.requires_grad and t.shape[:2] != (CLIPS, FRAMES)]
    with torch.autocast(device, dtype):
        outs = results(ours, given)
    found = torch.autograd.grad(outs, parameters, list(map(torch.randn_like, outs)))
    for place, gradient in enumerate(found):
        assert gradient.dtype == torch.float32
        some = gradient[gradient.abs() > 1e-3]  # float16 has fewer digits below
        assert len(some)
        rounded = (some == some.to(dtype).float()).float().mean().item()
        assert rounded < 0.2, (place, rounded)
