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
# of a gradient: a unit within rounding of zero opens on one side alone, so it goes with the root of the precision
_GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 0.15}
_CHANNELS, _HEADS, _HIDDEN, _FRONT, _HEAD, _BINS, _BANDS = 128, 4, 512, 32, 64, 257, 65  # of dpt


def disproof(device: torch.device, dtype: torch.dtype, frames: int = 188, gradients: bool = False) -> str:
    """What is wrong with the kernels on ``device`` in ``dtype``, in words; nothing where they equal the reference.

    ``gradients``: those that training takes, instead of the forward pass.
    """
    cases, most = (_gradient_cases, _GRADIENT_TOLERANCE) if gradients else (_cases, _TOLERANCE)
    exact = torch.backends.cudnn.flags(allow_tf32=False)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), exact, _full_precision():
        for name, ours, theirs, arguments in cases(device, dtype, frames):
            try:
                result = ours(*arguments)
            except Exception as error:  # whatever the compiler or the driver raises
                return f"{name} fails ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            distance = max(map(_distance, _several(result), _several(theirs(*map(_single, arguments)))))
            if not distance <= most[dtype]:
                return f"{name} is {distance:.1e} from the reference in {str(dtype).removeprefix('torch.')}"
    return ""


def _several(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _distance(result: Tensor, truth: Tensor) -> float:
    """Relative to the norm of the truth; infinite where it is not a number (``max`` would lose that)."""
    distance = ((result.to(truth.dtype) - truth).norm() / truth.norm()).item()
    return distance if distance == distance else float("inf")


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
    from fastenh.ops import kernels

    rand = _generator(device, dtype)
    for name, arguments in _around_the_layers(rand, 2, frames, relu=True).items():
        yield name, getattr(kernels, name), getattr(reference, name), arguments
    for axis in ("frequency", "time"):
        arguments = (rand(2, frames, _BANDS, _CHANNELS), *_layer_weights(rand))
        yield f"axis_layer along {axis}", _layer(kernels, axis), _layer(reference, axis), arguments


def _gradient_cases(
    device: torch.device, dtype: torch.dtype, frames: int
) -> Iterator[tuple[str, Callable, Callable, tuple]]:
    """The same of the gradients; the last argument is that of the result."""
    from fastenh.ops import kernels

    rand = _generator(device, dtype)
    x = rand(1, frames, _BANDS, _CHANNELS)
    inputs = _around_the_layers(rand, 1, frames, relu=False)
    spectrum, z = inputs["complex_mask"][1], inputs["mask_head"][0]
    yield "upsampled_moments", _moments(kernels), _moments(reference), (z,)
    moments = (z, rand(2, _HEAD, dtype=torch.float32))
    yield "gradient of upsampled_moments", *map(_gradients, (_moments(kernels), _moments(reference))), moments
    results = {
        "encoder_front": rand(1, frames, 129, _FRONT),
        "encoder_conv": x,
        "decoder_taps": rand(1, frames, _BANDS, 3, _HEAD),
        "mask_head": spectrum.flip(1),
        "complex_mask": spectrum.flip(1),
    }
    for name, grad in results.items():
        functions = (_gradients(getattr(module, name)) for module in (kernels, reference))
        yield f"gradient of {name}", *functions, (*inputs[name], grad)
    for axis in ("frequency", "time"):
        functions = (_gradients(_layer(module, axis)) for module in (kernels, reference))
        yield f"gradient of axis_layer along {axis}", *functions, (x, *_layer_weights(rand), x.flip(2))


def _generator(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator(device="cpu").manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return rand


def _around_the_layers(rand: Callable[..., Tensor], clips: int, frames: int, relu: bool) -> dict[str, tuple]:
    """The arguments of the operations, by name."""
    spectrum = torch.view_as_complex(rand(clips, frames, _BINS, 2, dtype=torch.float32)).transpose(1, 2)
    x, skip = rand(clips, frames, _BANDS, _CHANNELS), rand(clips, frames, _BANDS, _CHANNELS)
    wide, z = rand(clips, frames, 129, _FRONT), rand(clips, frames, _BANDS, 3, _HEAD)
    return {
        "complex_mask": (rand(clips, frames, _BINS).transpose(1, 2), spectrum, "sigmoid"),
        "encoder_front": (spectrum, 0.3 * rand(_FRONT, 1, 3, 3), rand(_FRONT), relu),
        "encoder_conv": (wide, 0.1 * rand(3, 3 * _FRONT, _CHANNELS), rand(_CHANNELS), relu),
        "decoder_taps": (x, skip, 0.1 * rand(3, _CHANNELS, 3 * _HEAD)),
        "mask_head": (z, rand(_HEAD), rand(_HEAD), 0.2 * rand(_HEAD), rand(1), spectrum),
    }


def _gradients(operation: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Of all real arguments, from that of the result, which is the last argument."""

    def gradients(*arguments: object) -> tuple[Tensor, ...]:
        real = [isinstance(a, Tensor) and a.is_floating_point() for a in arguments[:-1]]
        with torch.enable_grad():
            inputs = [a.detach().requires_grad_() if r else a for a, r in zip(arguments[:-1], real, strict=True)]
            wanted = [a for a, r in zip(inputs, real, strict=True) if r]
            return torch.autograd.grad(operation(*inputs), wanted, arguments[-1])

    return gradients


def _moments(module: object) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.stack(module.upsampled_moments(z, _BINS))


def _layer(module: object, axis: str) -> Callable[..., Tensor]:
    return lambda x, *weights: module.axis_layer(x, AxisLayerWeights(*weights), _HEADS, axis, 0.0)


def _layer_weights(rand: Callable[..., Tensor]) -> list[Tensor]:
    c, h = _CHANNELS, _HIDDEN
    shapes = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (h, c), (h,), (c, h), (c,)]
    return [0.1 * rand(*shape) if len(shape) == 2 else rand(*shape) for shape in shapes]


def _single(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and not value.is_complex() else value
