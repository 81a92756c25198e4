"""What the tests of the operations share: the devices and dtypes, the judge and its floors.

The error of a result is its distance to the float64 reference, relative to the norm of that. A kernel passes with at
most 1.5 times the error of the reference in the same dtype, and a floor.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastenh_kernels.operation import OPERATIONS, load_kernels

# Rounding of the result itself: a few units in the last place. float32 products are made of three TF32 products.
FLOORS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# bfloat16 is wrong in Triton's interpreter (3.6 to 3.9: tl.dot multiplies the raw bits), so it waits for a GPU
DEVICES = [
    pytest.param(("cpu", torch.float32), id="interpreted-float32"),
    pytest.param(("cpu", torch.float16), id="interpreted-float16"),
    *(pytest.param(("cuda", dtype), marks=pytest.mark.gpu, id=f"cuda-{str(dtype)[6:]}") for dtype in FLOORS),
]


# of opcheck, for operators with a gradient
RULES = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")


def kernel_of(name):
    """The operation by its Triton kernels, whatever device its arguments are on; the test is skipped without Triton."""
    pytest.importorskip("triton")
    load_kernels()
    return OPERATIONS[name].kernel


def reference_of(name):
    return OPERATIONS[name].reference


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype)


def as_double(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def rounded(value, dtype):
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def relative(value, truth):
    return ((value.cpu().to(truth.dtype) - truth).norm() / truth.norm()).item()


def check(kernel, plain, arguments, target):
    """``kernel`` against ``plain`` on the same arguments, rounded to the dtype under test."""
    device, dtype = target
    arguments = [rounded(a, dtype) for a in arguments]
    truth = plain(*map(as_double, arguments))
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    error, error_of_reference = relative(kernel(*moved), truth), relative(plain(*arguments), truth)
    assert error <= 1.5 * error_of_reference + FLOORS[dtype], (error, error_of_reference)


def layer_weights(width, hidden):
    """The twelve of ``AxisLayerWeights``."""
    shapes = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    shapes += [(width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)]
    return [randn(*shape) * (0.1 if len(shape) == 2 else 0.5) for shape in shapes]


def gradients(function, arguments, wanted, cotangents):
    """Of the arguments at the places ``wanted``."""
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    for place in wanted:
        arguments[place].requires_grad_()
    outs = results(function, arguments)
    cotangents = [c.to(out) for c, out in zip(cotangents, outs, strict=True)]
    return torch.autograd.grad(outs, [arguments[place] for place in wanted], cotangents)


def results(function, arguments):
    out = function(*arguments)
    return out if isinstance(out, tuple) else (out,)


def check_gradients(ours, plain, arguments, target, wanted=None):
    """Every gradient of ``ours`` against that of ``plain``, on arguments rounded to the dtype under test."""
    device, dtype = target
    arguments = [rounded(a, dtype) for a in arguments]
    wanted = wanted or [place for place, a in enumerate(arguments) if isinstance(a, torch.Tensor)]
    cotangents = [torch.randn_like(out) for out in results(plain, arguments)]
    truth = gradients(plain, list(map(as_double, arguments)), wanted, cotangents)
    theirs = gradients(plain, arguments, wanted, cotangents)
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
    own = gradients(ours, moved, wanted, cotangents)
    for place, gradient, reference_gradient, true in zip(wanted, own, theirs, truth, strict=True):
        assert gradient.dtype == reference_gradient.dtype
        error, error_of_reference = relative(gradient, true), relative(reference_gradient, true)
        assert error <= 1.5 * error_of_reference + FLOORS[dtype], (place, error, error_of_reference)


def twice(function, arguments, wanted):
    """The same step again gives the same bits."""
    cotangents = [torch.randn_like(out) for out in results(function, arguments)]
    first, second = (gradients(function, arguments, wanted, cotangents) for _ in range(2))
    assert all(map(torch.equal, first, second))


def textbook_layer(w, heads):
    """PyTorch's own encoder layer with these weights, in float64."""
    layer = nn.TransformerEncoderLayer(
        w.qkv_weight.shape[1],
        heads,
        w.up_weight.shape[0],
        0.0,
        "relu",
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    )
    names = ["norm1", "self_attn.in_proj_", "self_attn.out_proj", "norm2", "linear1", "linear2"]
    keys = [f"{n}weight" if n.endswith("_") else f"{n}.weight" for n in names]
    state = {}
    for key, weight, bias in zip(keys, w[::2], w[1::2], strict=True):
        state[key], state[key.replace("weight", "bias")] = weight, bias
    layer.double().load_state_dict(state)
    return layer
