"""The kernels' own test on a device: every one of them once, against the reference, before any job relies on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastenh.ops import reference
from fastenh.ops.types import AxisLayerWeights

# relative distance to the reference in float32; a wrong element or a race shows as far more
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_CHANNELS, _HEADS, _HIDDEN, _FRONT, _HEAD, _BINS, _BANDS = 128, 4, 512, 32, 64, 257, 65  # of dpt


def disproof(device: torch.device, dtype: torch.dtype, frames: int = 188) -> str:
    """What is wrong with the kernels on ``device`` in ``dtype``, in words; nothing where they equal the reference."""
    exact = torch.backends.cudnn.flags(allow_tf32=False)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), exact, _full_precision():
        for name, ours, theirs, arguments in _cases(device, dtype, frames):
            try:
                result = ours(*arguments)
            except Exception as error:  # whatever the compiler or the driver raises
                return f"{name} fails ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            truth = theirs(*map(_single, arguments))
            distance = ((result.to(truth.dtype) - truth).norm() / truth.norm()).item()
            if not distance <= _TOLERANCE[dtype]:
                return f"{name} is {distance:.1e} from the reference in {str(dtype).removeprefix('torch.')}"
    return ""


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products of float32 in float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _cases(device: torch.device, dtype: torch.dtype, frames: int) -> Iterator[tuple[str, Callable, Callable, tuple]]:
    """(name, kernel, reference, arguments) at the widths of ``dpt``."""
    import fastenh_kernels as kernels

    generator = torch.Generator(device="cpu").manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    spectrum = torch.view_as_complex(rand(2, frames, _BINS, 2, dtype=torch.float32)).transpose(1, 2)
    x = rand(2, frames, _BANDS, _CHANNELS)
    front = (spectrum, 0.3 * rand(_FRONT, 1, 3, 3), rand(_FRONT))
    conv = (rand(2, frames, 129, _FRONT), 0.1 * rand(3, 3 * _FRONT, _CHANNELS), rand(_CHANNELS))
    head = (rand(2, frames, _BANDS, 3, _HEAD), rand(_HEAD), rand(_HEAD), 0.2 * rand(_HEAD), rand(1), spectrum)
    mask = (rand(2, frames, _BINS).transpose(1, 2), spectrum, "sigmoid")
    yield "complex_mask", kernels.complex_mask, reference.complex_mask, mask
    yield "encoder_front", kernels.encoder_front, reference.encoder_front, (*front, True)
    yield "encoder_conv", kernels.encoder_conv, reference.encoder_conv, (*conv, True)
    yield "decoder_taps", kernels.decoder_taps, reference.decoder_taps, (x, x, 0.1 * rand(3, _CHANNELS, 3 * _HEAD))
    yield "mask_head", kernels.mask_head, reference.mask_head, head
    gradient = (rand(1, frames, _BANDS, 3 * _CHANNELS), rand(1, frames, _BANDS, _CHANNELS))
    for axis in ("frequency", "time"):
        yield f"axis_layer along {axis}", *_layer(kernels, axis), (x, *_layer_weights(rand))
        yield f"gradient of axis_attention along {axis}", *_attention_gradient(kernels, axis), gradient


def _layer(kernels: object, axis: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return kernels.axis_layer(x, weights, _HEADS, axis)

    def theirs(x: Tensor, *weights: Tensor) -> Tensor:
        return reference.axis_layer(x, AxisLayerWeights(*weights), _HEADS, axis, 0.0)

    return ours, theirs


def _attention_gradient(kernels: object, axis: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def ours(qkv: Tensor, grad: Tensor) -> Tensor:
        return kernels.axis_attention_backward(grad, qkv, kernels.axis_attention(qkv, _HEADS, axis), _HEADS, axis)

    def theirs(qkv: Tensor, grad: Tensor) -> Tensor:
        with torch.enable_grad():
            qkv = qkv.detach().requires_grad_()
            return torch.autograd.grad(reference.axis_attention(qkv, _HEADS, axis, 0.0), qkv, grad)[0]

    return ours, theirs


def _layer_weights(rand: Callable[..., Tensor]) -> list[Tensor]:
    c, h = _CHANNELS, _HIDDEN
    shapes = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (h, c), (h,), (c, h), (c,)]
    return [0.1 * rand(*shape) if len(shape) == 2 else rand(*shape) for shape in shapes]


def _single(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and not value.is_complex() else value
