"""Kernels as PyTorch operators: what is alike in registering one, and the dtypes around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from fastenh_kernels.shared.launch import is_recording

LAUNCHERS: dict[str, Callable[..., Any]] = {}  # by the name of the operator
FORKED: dict[str, Callable[..., tuple[Tensor, ...]]] = {}  # likewise


def operator(name: str, launch: Callable[..., Any], shapes: Callable[..., Any]) -> CustomOpDef:
    """``launch`` as the operator ``fastenh_kernels::NAME``: a whole for ``torch.compile`` and ``torch.export``.

    shapes: takes the same arguments and gives empty results, for fake and meta tensors. Where launches are written
    down, ``launch`` itself runs on meta tensors.
    """

    def without_values(*arguments: Any) -> Any:
        return launch(*arguments) if is_recording() else shapes(*arguments)

    LAUNCHERS[name] = launch
    made = torch.library.custom_op(f"fastenh_kernels::{name}", launch, mutates_args=())
    made.register_fake(without_values)
    return made


def register_forked(name: str, made: CustomOpDef, gradient: Callable[..., Any], keep: Callable[..., None]) -> None:
    """``FORKED[name]``: the operator ``made``, whose first argument comes back as one more result, for another reader.

    Autograd adds the gradients of two readers of a tensor in a launch of its own. If the other reader takes the tensor
    from here, its gradient comes to ``gradient`` as the last one, and the kernel adds it to its own before it stores
    that. An operator must not return what it was given, so this is an autograd function around it. gradient, keep: as
    ``register_autograd`` takes them.
    """

    class Forked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = made(*inputs)
            keep(ctx, inputs, output)
            return *(output if isinstance(output, tuple) else (output,)), inputs[0].view_as(inputs[0])

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            return gradient(ctx, *gradients)

    FORKED[name] = Forked.apply


def as_dtypes_of(gradients: Iterable[Tensor], tensors: Iterable[Tensor]) -> list[Tensor]:
    """Gradients of weights leave the kernels in float32 and take the dtype of the weight."""
    return [gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, tensors, strict=True)]


def like(tensor: Tensor) -> Tensor:
    """Empty and contiguous."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def single(tensor: Tensor) -> Tensor:
    """Empty, of its shape, in float32."""
    return tensor.new_empty(tensor.shape, dtype=torch.float32)
