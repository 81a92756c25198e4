"""A mask, activated and applied to a spectrum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.complex_mask import reference

Activation = Literal["sigmoid", "tanh", "none"]


def complex_mask(mask: Tensor, spectrum: Tensor, activation: Activation) -> Tensor:
    """``activation(mask) * spectrum``.

    mask: (B, F, T), real or complex; spectrum: complex (B, F, T). Returns complex (B, F, T).
    activation: "sigmoid" for a real mask; "tanh", which bounds the magnitude of a complex mask and keeps its phase
    (Williamson et al. 2016, "Complex ratio masking for monaural speech separation"); "none".
    Raises ``ValueError`` for the sigmoid of a complex mask.
    """
    if mask.is_complex() and activation == "sigmoid":
        raise ValueError("a complex mask takes the activation 'tanh' or 'none', not 'sigmoid'")
    return OPERATION(mask, spectrum, activation)


def _examples(inputs: Inputs) -> Iterator[Example]:
    spectrum = inputs.spectrum(DPT.bins)
    mask = inputs.real(inputs.clips, inputs.frames, DPT.bins).transpose(1, 2)
    for activation in ("none", "sigmoid", "tanh"):
        yield Example(activation, (mask, spectrum, activation))
    for activation in ("none", "tanh"):
        yield Example(f"{activation}, complex mask", (inputs.spectrum(DPT.bins), spectrum, activation))


OPERATION = Operation("complex_mask", reference.complex_mask, examples=_examples)
