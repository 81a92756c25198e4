"""The first convolution on a compressed spectrum."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation, wide_values
from fastenh_kernels.operations.compressed_front import cpu, reference


def compressed_front(spectrum: Tensor, weight: Tensor, bias: Tensor, power: float, ahead: int) -> Tensor:
    """SiLU of a convolution over 8 bins, 4 apart, and 3 frames of the compressed spectrum: |X|^power with the phase of
    X, and |X|^power by itself.

    spectrum: complex (B, 257, T), of which the last bin is left out; weight: (C, 3 features, 8 bins, 3 frames), the
    features in the order real, imaginary, magnitude; bias: (C,). ahead: frames behind the present one, 0 to 2.
    Returns (B, T, 64, C). For inference: a batch norm is folded into the weight.
    """
    return OPERATION(spectrum, weight, bias, power, ahead)


def _serves(spectrum: Tensor, weight: Tensor, bias: Tensor, power: float, ahead: int) -> str:
    channels = weight.shape[0]
    if spectrum.shape[1] != 257 or channels not in (16, 32, 64):
        return f"{spectrum.shape[1]} bins, {channels} channels: the kernel takes 257, and 16, 32 or 64"
    return wide_values(weight)


def _examples(inputs: Inputs) -> Iterator[Example]:
    c = DPT_COMPLEX.front_channels
    weight = inputs.real(c, 3, 8, 3, scale=0.1)
    yield Example("", (inputs.spectrum(DPT_COMPLEX.bins), weight, inputs.vector(c), 0.3, 1), "inference")


OPERATION = Operation(
    "compressed_front",
    reference.compressed_front,
    cpu=cpu.compressed_front,
    serves=_serves,
    examples=_examples,
    differentiable=False,
)
