"""Kernels as PyTorch operators: what is alike in registering one, and the dtypes around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from fastenh_kernels.shared.launch import is_recording

LAUNCHERS: dict[str, Callable[..., Any]] = {}  # by the name of the operator


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


def as_dtypes_of(gradients: Iterable[Tensor], tensors: Iterable[Tensor]) -> list[Tensor]:
    """Gradients of weights leave the kernels in float32 and take the dtype of the weight."""
    return [gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, tensors, strict=True)]


def like(tensor: Tensor) -> Tensor:
    """Empty and contiguous."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def single(tensor: Tensor) -> Tensor:
    """Empty, of its shape, in float32."""
    return tensor.new_empty(tensor.shape, dtype=torch.float32)
