"""Batch statistics of the decoder's convolution."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.upsampled_moments import cpu, reference
from fastenh_kernels.shared.upsampled import unserved_channels


def upsampled_moments(z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance, each (C',), of ``conv3x3(upsample(x))`` over clips, frames and ``bins``.

    z: (B, T, F, 3, C') from ``decoder_taps``. For batch norm in training: in float32, or in float64 for float64.
    """
    return OPERATION(z, bins)


def _serves(z: Tensor, bins: int) -> str:
    return unserved_channels(z)


def _examples(inputs: Inputs) -> Iterator[Example]:
    z = inputs.real(inputs.clips, inputs.frames, DPT.bands, 3, DPT.head_channels)
    yield Example("", (z, DPT.bins), "training")


OPERATION = Operation(
    "upsampled_moments",
    reference.upsampled_moments,
    cpu=cpu.upsampled_moments,
    serves=_serves,
    examples=_examples,
)
