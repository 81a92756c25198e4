"""What the tests of the kernels share: the devices and dtypes, the judge and its floors."""

from __future__ import annotations

import pytest
import torch

# Rounding of the result itself: a few units in the last place. float32 products are made of three TF32 products.
FLOORS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# bfloat16 is wrong in Triton's interpreter (3.6 to 3.9: tl.dot multiplies the raw bits), so it waits for a GPU
DEVICES = [
    pytest.param(("cpu", torch.float32), id="interpreted-float32"),
    pytest.param(("cpu", torch.float16), id="interpreted-float16"),
    *(pytest.param(("cuda", dtype), marks=pytest.mark.gpu, id=f"cuda-{str(dtype)[6:]}") for dtype in FLOORS),
]


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
