"""A convolution over bands of what is normalised and activated as it is read, and the moments of its result."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation, wide_values
from fastenh_kernels.operations.band_convolution import reference


def band_convolution(
    x: Tensor,
    affine: Tensor | None,
    weight: Tensor,
    skip: Tensor | None = None,
    skip_affine: Tensor | None = None,
    forked: bool = False,
) -> tuple[Tensor, ...]:
    """Convolution of ``silu(x * scale + shift)`` over the bands of each frame, and the moments of what it gives.

    For batch norm in training: the moments of all frames must be known before any is normalised, so that a convolution
    normalises and activates what it reads, by the moments of the one before, and leaves its own.
    x: (B, T, F, C); affine: (2, C), scale and shift, or None for x as it is; weight: (C, C, 3), or (C, 2C, 1) with a
    skip (B, T, F, C) whose channels stand behind those of x, activated by skip_affine (2, C). Returns the result
    (B, T, F, C), and its mean and (biased) variance, each (C,), in float32, or in float64 for float64. forked: x comes
    back as a fourth result, for another reader, whose gradient the kernels then add where they make their own.
    """
    return OPERATION(x, affine, weight, skip, skip_affine, forked)


def _serves(
    x: Tensor,
    affine: Tensor | None,
    weight: Tensor,
    skip: Tensor | None = None,
    skip_affine: Tensor | None = None,
    forked: bool = False,
) -> str:
    bands, channels = x.shape[2:]
    if bands not in (16, 32, 64) or channels not in (16, 32):
        return f"{bands} bands of {channels} channels: the kernel takes 16, 32 or 64 of 16 or 32"
    wanted = (channels, channels, 3) if skip is None else (channels, 2 * channels, 1)
    if weight.shape != wanted:
        return f"a weight of {tuple(weight.shape)}: the kernel takes {wanted}"
    return wide_values(x)


def _examples(inputs: Inputs) -> Iterator[Example]:
    s = DPT_COMPLEX
    c = s.front_channels
    x, skip = inputs.activation(s.wide_bands, c), inputs.activation(s.wide_bands, c)
    affine, skip_affine = (inputs.vector(2 * c).view(2, c) for _ in "xs")
    weight, mix = inputs.real(c, c, 3, scale=0.1), inputs.real(c, 2 * c, 1, scale=0.1)
    yield Example("three bands", (x, affine, weight), "training")
    yield Example("three bands, forked", (x, affine, weight, None, None, True), "training")
    yield Example("mix", (x, affine, mix, skip, skip_affine), "training")
    yield Example("first mix", (x, None, mix, skip, skip_affine), "training")


OPERATION = Operation("band_convolution", reference.band_convolution, serves=_serves, examples=_examples)
