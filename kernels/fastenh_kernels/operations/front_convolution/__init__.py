"""The first convolution on a compressed spectrum, in training: without its batch norm, but with the moments for it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation, wide_values
from fastenh_kernels.operations.front_convolution import reference


def front_convolution(spectrum: Tensor, weight: Tensor, power: float, ahead: int) -> tuple[Tensor, Tensor, Tensor]:
    """What ``compressed_front`` convolves, without bias and SiLU, and the moments of the result.

    spectrum: complex (B, 257, T); weight: (C, 3 features, 8 bins, 3 frames). Returns (B, T, 64, C), and its mean and
    (biased) variance, each (C,), in float32, or in float64 for float64. Kernels give the gradient of the weight alone.
    """
    return OPERATION(spectrum, weight, power, ahead)


def on_kernels(spectrum: Tensor, weight: Tensor) -> bool:
    """Whether kernels run for these."""
    return OPERATION.pick(spectrum, weight, 1.0, 1) not in (OPERATION.reference, OPERATION.cpu)


def _serves(spectrum: Tensor, weight: Tensor, power: float, ahead: int) -> str:
    bins, channels = spectrum.shape[1], weight.shape[0]
    if bins != 257 or channels not in (16, 32):
        return f"{bins} bins, {channels} channels: the kernel takes 257, and 16 or 32"
    if spectrum.requires_grad:
        return "a gradient of the spectrum: the kernel takes constants"
    return wide_values(weight)


def _examples(inputs: Inputs) -> Iterator[Example]:
    weight = inputs.real(DPT_COMPLEX.front_channels, 3, 8, 3, scale=0.1)
    yield Example("", (inputs.spectrum(DPT_COMPLEX.bins), weight, 0.3, 1), "training")


OPERATION = Operation("front_convolution", reference.front_convolution, serves=_serves, examples=_examples)
