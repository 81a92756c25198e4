"""The second convolution of the encoder."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.encoder_conv import reference


def encoder_conv(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """``conv2d(x)``, 3x3, stride 2 along frequency, padding 1; then ReLU if asked for.

    x: (B, T, F, C); matrix: (3 time taps, 3 frequency taps x C, C'); bias: (C',). Returns (B, T, (F + 1) // 2, C').
    """
    return OPERATION(x, matrix, bias, relu)


def _serves(x: Tensor, matrix: Tensor, bias: Tensor, relu: bool) -> str:
    _, values, columns = matrix.shape
    if max(values, columns) > 128:
        return f"the kernel takes matrices of at most 128 x 128 a time tap, not {values} x {columns}"
    return ""


def _examples(inputs: Inputs) -> Iterator[Example]:
    """A batch norm stands before the ReLU in training and is folded into the matrix in inference."""
    for use in ("inference", "training"):
        x = inputs.activation(DPT.wide_bands, DPT.front_channels)
        matrix = inputs.real(3, 3 * DPT.front_channels, DPT.channels, scale=0.1)
        yield Example(use, (x, matrix, inputs.vector(DPT.channels), use == "inference"), use)


OPERATION = Operation("encoder_conv", reference.encoder_conv, serves=_serves, examples=_examples)
