"""From few bands back to many, and convolutions over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation, wide_values
from fastenh_kernels.operations.band_decoder import cpu, reference


def band_decoder(
    y: Tensor,
    skips: Sequence[Tensor],
    bands: Sequence[Tensor],
    mixes: Sequence[Tensor],
    convolutions: Sequence[Tensor],
) -> Tensor:
    """Linear maps over channels and over bands; then, again and again, a skip connection is mixed in and a convolution
    over three bands follows. The last mixing has no convolution behind it. Each of them ends in SiLU.

    y: (B, T, F', W); skips: (B, T, F, C) each, in the order in which they are mixed in; bands: the map over channels
    (C, W), its bias (C,), and the map over bands (F, F'); mixes: weight (C, 2C), for what is there and for the skip,
    and bias (C,) of each; convolutions: weight (C, C, 3) and bias (C,) of each. Returns (B, T, F, C). For inference.
    """
    return OPERATION(y, tuple(skips), tuple(bands), tuple(mixes), tuple(convolutions))


def _serves(y: Tensor, skips: tuple[Tensor, ...], bands: tuple[Tensor, ...], *_: tuple[Tensor, ...]) -> str:
    (channels, width), (wide, count) = bands[0].shape, bands[2].shape
    if len(skips) != 3 or wide != 64 or count not in (16, 32, 64):
        return f"{len(skips)} skips, {count} bands to {wide}: the kernel takes 3, and 16, 32 or 64 to 64"
    if channels not in (16, 32, 64) or width not in (16, 32, 64):
        return f"{width} channels to {channels}: the kernel takes 16, 32 or 64"
    return wide_values(y)


def _examples(inputs: Inputs) -> Iterator[Example]:
    s = DPT_COMPLEX
    c, w = s.front_channels, s.channels
    y, skips = inputs.activation(s.bands, w), tuple(inputs.activation(s.wide_bands, c) for _ in range(3))
    bands = inputs.real(c, w, scale=0.1), inputs.vector(c), inputs.real(s.wide_bands, s.bands, scale=0.1)
    mixes = [tensor for _ in range(3) for tensor in (inputs.real(c, 2 * c, scale=0.1), inputs.vector(c))]
    convolutions = [tensor for _ in range(2) for tensor in (inputs.real(c, c, 3, scale=0.1), inputs.vector(c))]
    yield Example("", (y, skips, bands, tuple(mixes), tuple(convolutions)), "inference")


OPERATION = Operation(
    "band_decoder",
    reference.band_decoder,
    cpu=cpu.band_decoder,
    serves=_serves,
    examples=_examples,
    differentiable=False,
)
