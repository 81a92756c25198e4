"""The kernels' own test on a device: every one of them once, against the reference, before any job relies on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastenh_kernels.examples import Inputs, leaves
from fastenh_kernels.operation import OPERATIONS, Example, Operation, load_kernels, tensors_of

# relative distance to the reference in float32; a wrong element or a race shows as far more
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# of a gradient: a unit within rounding of zero opens on one side alone, so it goes with the root of the precision
_GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 0.15}


FRAMES = (188, 256)  # of a training crop of 3 s, and of the window that is shipped
# The kernels with dropout, on draws that drop nothing to speak of: one value of 2^32, which no result shows (a
# probability of 0 would leave the draws out of the code). Which values are dropped at all is a matter of the tests.
_DROPS_NOTHING = 2.0**-32


class Proof(NamedTuple):
    """One example of an operation, run once."""

    name: str
    distance: float  # of the worst result or gradient to the reference in float32, relative
    most: float  # that is taken for equal
    error: str = ""  # where nothing was computed

    @property
    def fault(self) -> str:
        """The fault in words; nothing where the kernel equals the reference."""
        if self.error:
            return f"{self.name} fails ({self.error})"
        return "" if self.distance <= self.most else f"{self.name} is {self.distance:.1e} from the reference"


def proofs(
    device: torch.device,
    dtype: torch.dtype,
    frames: Sequence[int] = FRAMES,
    gradients: bool = False,
    only: str | None = None,
) -> Iterator[Proof]:
    """Run every example that the kernels take, or those of one operation, against the reference.

    ``gradients``: what training runs, results and gradients, without dropout and with it.
    """
    load_kernels()
    run, most = (_gradients, _GRADIENT_TOLERANCE) if gradients else (_results, _TOLERANCE)
    exact = torch.backends.cudnn.flags(allow_tf32=False)
    with torch.autocast(device.type, enabled=False), exact, _full_precision():
        for label, operation, arguments, truths_of in _cases(device, dtype, frames, gradients, only):
            name = f"{'gradient of ' if gradients else ''}{operation.name} ({label})"
            try:
                results = run(operation.kernel, arguments)
                distances = [*map(_distance, results, run(operation.reference, tree_map(_single, truths_of)))]
            except Exception as error:  # whatever the compiler or the driver raises
                words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                yield Proof(name, float("inf"), most[dtype], words)
                continue
            yield Proof(name, max(distances), most[dtype])


def _cases(
    device: torch.device, dtype: torch.dtype, frames: Sequence[int], gradients: bool, only: str | None
) -> Iterator[tuple[str, Operation, tuple[Any, ...], tuple[Any, ...]]]:
    """(label, operation, arguments of the kernel, of the reference) of what the kernels take."""
    use = "training" if gradients else "inference"
    for count in frames:
        inputs = Inputs(device, dtype, clips=1 if gradients else 2, frames=count)
        for operation, example in _served(inputs, use, only):
            label = ", ".join(filter(None, (example.label, f"{count} frames")))
            yield label, operation, example.arguments, example.arguments
            if gradients and operation.takes_dropout:
                dropping = operation.with_dropout(example.arguments, _DROPS_NOTHING)
                yield f"{label}, dropout", operation, dropping, example.arguments


def _served(inputs: Inputs, use: str, only: str | None) -> Iterator[tuple[Operation, Example]]:
    """The examples that the kernels take."""
    for operation in OPERATIONS.values():
        if only in (None, operation.name):
            for example in operation.examples(inputs):
                if example.use in (use, "both") and not operation.serves(*example.arguments):
                    yield operation, example


def _results(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        result = function(*arguments)
    return result if isinstance(result, tuple) else (result,)


def _gradients(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The results, and the gradients of ``leaves`` from random gradients of the results, the same for each function."""
    with torch.enable_grad():
        arguments = leaves(arguments)
        result = function(*arguments)
        results = result if isinstance(result, tuple) else (result,)
        random = Inputs(results[0].device, torch.float32, seed=1)
        upstream = [_like(random, result) for result in results]
        found = torch.autograd.grad(results, [t for t in tensors_of(arguments) if t.requires_grad], upstream)
        return (*(result.detach() for result in results), *found)


def _like(random: Inputs, result: Tensor) -> Tensor:
    """Values that no dtype rounds; a spectrum's are laid out as the result's."""
    if result.is_complex():
        random.clips, bins, random.frames = result.shape
        return random.spectrum(bins)
    return random.real(*result.shape).bfloat16().to(result.dtype)


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and not value.is_complex() else value


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
