"""A linear map over bands and one over channels, of what is normalised and activated as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, overload

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation, wide_values
from fastenh_kernels.operations.band_map import reference


@overload
def band_map(x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor) -> Tensor: ...


@overload
def band_map(
    x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor, forked: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def band_map(
    x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor, forked: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """``bands @ h @ weight.T + added`` of each frame, where h is ``silu(x * scale + shift)``.

    x: (B, T, F, C); affine: (2, C), scale and shift, or None for x as it is; bands: (F', F); weight: (C', C);
    added: (F', C'). Returns (B, T, F', C'). forked: and x, for another reader, whose gradient the kernels then add
    where they make their own.
    """
    return OPERATION(x, affine, bands, weight, added, forked)


def _serves(
    x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor, forked: bool = False
) -> str:
    (count, wide), (width, channels) = bands.shape, weight.shape
    if any(size not in (16, 32, 64) for size in (count, wide, width, channels)):
        return f"{wide} bands of {channels} channels to {count} of {width}: the kernel takes 16, 32 or 64 each"
    return wide_values(x)


def _examples(inputs: Inputs) -> Iterator[Example]:
    s = DPT_COMPLEX
    c, w = s.front_channels, s.channels
    down, up = inputs.real(s.bands, s.wide_bands, scale=0.1), inputs.real(s.wide_bands, s.bands, scale=0.1)
    enter, leave = inputs.real(w, c, scale=0.1), inputs.real(c, w, scale=0.1)
    wide, affine = inputs.activation(s.wide_bands, c), inputs.vector(2 * c).view(2, c)
    yield Example("enter", (wide, affine, down, enter, inputs.real(s.bands, w), True), "training")
    yield Example("leave", (inputs.activation(s.bands, w), None, up, leave, inputs.real(s.wide_bands, c)), "training")


OPERATION = Operation("band_map", reference.band_map, serves=_serves, examples=_examples)
