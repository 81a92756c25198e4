"""SiLU of rows that are scaled and shifted: a batch norm whose moments are known, and its activation."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.affine_silu import reference

_MOST_CHANNELS = 128


def affine_silu(x: Tensor, affine: Tensor) -> Tensor:
    """``silu(x * scale + shift)``: what ``band_convolution`` does to its input, for those who do nothing else.

    x: (B, T, F, C); affine: (2, C), scale and shift. Returns (B, T, F, C).
    """
    return OPERATION(x, affine)


def _serves(x: Tensor, affine: Tensor) -> str:
    channels = x.shape[3]
    if channels & (channels - 1) or not 16 <= channels <= _MOST_CHANNELS:
        return f"{channels} channels: the kernel takes powers of 2 from 16 to {_MOST_CHANNELS}"
    return ""


def _examples(inputs: Inputs) -> Iterator[Example]:
    c = DPT_COMPLEX.front_channels
    yield Example("", (inputs.activation(DPT_COMPLEX.wide_bands, c), inputs.vector(2 * c).view(2, c)), "training")


OPERATION = Operation("affine_silu", reference.affine_silu, serves=_serves, examples=_examples)
