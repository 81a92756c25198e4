"""The decoder's convolution before upsampling."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.decoder_taps import reference


def decoder_taps(x: Tensor, skip: Tensor, matrix: Tensor) -> Tensor:
    """The 3x3 convolution of the decoder, of x + skip, before upsampling: time taps summed, frequency taps apart.

    Linear upsampling along frequency shares no dimension with channels or time, so
    ``conv3x3(upsample(x))`` is the sum over k of the upsampled tap k, shifted by k - 1 bins.
    x, skip: (B, T, F, C); matrix: (3 time taps, C, 3 frequency taps x C'). Returns z: (B, T, F, 3, C').
    """
    return OPERATION(x, skip, matrix)


def _serves(x: Tensor, skip: Tensor, matrix: Tensor) -> str:
    _, channels, columns = matrix.shape
    if channels > 128 or columns > 256:
        return f"the kernel takes matrices of at most 128 x 256 a time tap, not {channels} x {columns}"
    return ""


def _examples(inputs: Inputs) -> Iterator[Example]:
    x, skip = (inputs.activation(DPT.bands, DPT.channels) for _ in range(2))
    yield Example("", (x, skip, inputs.real(3, DPT.channels, 3 * DPT.head_channels, scale=0.1)))


OPERATION = Operation("decoder_taps", reference.decoder_taps, serves=_serves, examples=_examples)
