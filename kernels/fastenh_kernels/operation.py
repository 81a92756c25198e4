"""What an operation is, and the one place that picks an implementation of it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastenh_kernels.backend import choose, constant_in_graphs
from fastenh_kernels.examples import Inputs
from fastenh_kernels.shared.context import needs_gradient

OPERATIONS: dict[str, Operation] = {}  # by name, in the order in which they are imported


class Example(NamedTuple):
    """Arguments as a model that is shipped gives them."""

    label: str  # what tells it from the operation's other examples
    arguments: tuple[Any, ...]
    use: Literal["inference", "training", "both"] = "both"


def _anything(*arguments: Any) -> str:
    return ""


class Operation:
    """One operation with its implementations; called, it picks one and runs it.

    name: of the public function and of the folder in ``operations``.
    reference: pure PyTorch, any dtype up to float64, the gradient that autograd finds.
    cpu: another form that a processor gains by; it takes all that the reference takes.
    serves: why the kernel does not take these arguments, in words; nothing where it does.
    differentiable: whether the kernel has a gradient; without one it serves inference alone.
    examples: the arguments of the models that are shipped, made by ``Inputs``: what is proven on a device, compiled
        without one, and timed.

    The kernel is ``operations/NAME/forward.py:NAME``. It is imported where it is picked for the first time, since
    Triton may be absent.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Any],
        *,
        examples: Callable[[Inputs], Iterator[Example]],
        cpu: Callable[..., Any] | None = None,
        serves: Callable[..., str] = _anything,
        differentiable: bool = True,
    ) -> None:
        self.name, self.reference, self.cpu = name, reference, cpu or reference
        self.serves, self.examples, self.differentiable = serves, examples, differentiable
        self._names = list(inspect.signature(reference).parameters)
        self.kernel: Any = None  # a function, from load_kernels on
        OPERATIONS[name] = self

    def __call__(self, *arguments: Any) -> Any:
        return self.pick(*arguments)(*arguments)

    @property
    def takes_dropout(self) -> bool:
        return "dropout" in self._names

    def with_dropout(self, arguments: tuple[Any, ...], dropout: float) -> tuple[Any, ...]:
        """The same arguments but for the dropout."""
        place = self._names.index("dropout")
        return (*arguments[:place], dropout, *arguments[place + 1 :])

    def pick(self, *arguments: Any) -> Callable[..., Any]:
        """The implementation for these arguments: in float64 and for what the kernel does not serve the reference."""
        tensors = tensors_of(arguments)
        if any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors):
            return self.reference
        training = needs_gradient(*tensors)
        backend = choose(tensors[0].device, training, self.name, dtype_of(tensors)).name
        if backend == "cpu":
            return self.cpu
        if backend == "reference" or (training and not self.differentiable) or self.serves(*arguments):
            return self.reference
        load_kernels()
        return self.kernel


def tensors_of(arguments: tuple[Any, ...]) -> list[Tensor]:
    """Tensors among the arguments, and those in tuples among them."""
    parts = (part for argument in arguments for part in (argument if isinstance(argument, tuple) else (argument,)))
    return [part for part in parts if isinstance(part, Tensor)]


def dtype_of(tensors: list[Tensor]) -> torch.dtype:
    """Dtype in which an operation computes: that of autocast, or of its first real tensor."""
    device = tensors[0].device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return next((tensor.dtype for tensor in tensors if not tensor.is_complex()), torch.float32)


def wide_values(tensor: Tensor) -> str:
    """In words, why a kernel that fills the registers with 16-bit values does not take ``tensor``; the interpreter,
    which has any number of registers, does."""
    if dtype_of([tensor]) == torch.float32 and tensor.device.type != "cpu":
        return "float32: the kernel takes 16 bit"
    return ""


@constant_in_graphs
def load_kernels() -> int:
    """Import the kernels of all operations with their gradients; returns their number."""
    for operation in OPERATIONS.values():
        if operation.kernel is None:
            folder = f"{__package__}.operations.{operation.name}"
            if operation.differentiable:
                importlib.import_module(f"{folder}.backward")
            operation.kernel = getattr(importlib.import_module(f"{folder}.forward"), operation.name)
    return len(OPERATIONS)
