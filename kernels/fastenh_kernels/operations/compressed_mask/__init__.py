"""The mask of a compressed spectrum, made by a transposed convolution and applied."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation, wide_values
from fastenh_kernels.operations.compressed_mask import cpu, reference


def compressed_mask(x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int) -> Tensor:
    """A complex mask by a transposed convolution over 8 bins, 4 apart, and 3 frames, times the compressed spectrum,
    expanded again.

    x: (B, T, 64, C); weight: (C, 2 parts, 8 bins, 3 frames); bias: (2,); spectrum: complex (B, 257, T), whose last bin
    comes back as zero. ahead: frames behind the present one, 0 to 2. Returns complex (B, 257, T). Kernels give no
    gradient of the spectrum.
    """
    return OPERATION(x, weight, bias, spectrum, power, ahead)


def _serves(x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int) -> str:
    channels = weight.shape[0]
    if spectrum.shape[1] != 257 or channels not in (16, 32, 64):
        return f"{spectrum.shape[1]} bins, {channels} channels: the kernel takes 257, and 16, 32 or 64"
    if spectrum.requires_grad:
        return "a gradient of the spectrum: the kernel takes constants"
    return wide_values(x)


def _examples(inputs: Inputs) -> Iterator[Example]:
    c = DPT_COMPLEX.front_channels
    x, weight = inputs.activation(DPT_COMPLEX.wide_bands, c), inputs.real(c, 2, 8, 3, scale=0.1)
    arguments = x, weight, inputs.vector(2), inputs.spectrum(DPT_COMPLEX.bins), 0.3, 1
    yield Example("", arguments)


OPERATION = Operation(
    "compressed_mask", reference.compressed_mask, cpu=cpu.compressed_mask, serves=_serves, examples=_examples
)
