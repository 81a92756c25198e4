"""Convolutions over bands, then fewer bands of more channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation, wide_values
from fastenh_kernels.operations.band_encoder import cpu, reference


def band_encoder(x: Tensor, convolutions: Sequence[Tensor], bands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Convolutions over three bands of each frame, each with SiLU; then a linear map over bands and one over channels.

    x: (B, T, F, C); convolutions: weight (C, C, 3) and bias (C,) of each, one after the other; bands: the map over
    bands (F', F), the map over channels (W, C), its bias (W,), and positions (F', W), which are added. Returns
    (B, T, F', W), and what each convolution gave, (B, T, F, C). For inference: batch norms are folded.
    """
    return OPERATION(x, tuple(convolutions), tuple(bands))


def _serves(x: Tensor, convolutions: tuple[Tensor, ...], bands: tuple[Tensor, ...]) -> str:
    (count, wide), (width, channels) = bands[0].shape, bands[1].shape
    if len(convolutions) != 4 or wide != 64 or count not in (16, 32, 64):
        return f"{len(convolutions) // 2} convolutions, {wide} bands to {count}: the kernel takes 2, 64 to 16, 32 or 64"
    if channels not in (16, 32, 64) or width not in (16, 32, 64):
        return f"{channels} channels to {width}: the kernel takes 16, 32 or 64"
    return wide_values(x)


def _examples(inputs: Inputs) -> Iterator[Example]:
    s = DPT_COMPLEX
    c, w = s.front_channels, s.channels
    weights = [inputs.real(c, c, 3, scale=0.1), inputs.vector(c), inputs.real(c, c, 3, scale=0.1), inputs.vector(c)]
    bands = inputs.real(s.bands, s.wide_bands, scale=0.1), inputs.real(w, c, scale=0.1), inputs.vector(w)
    arguments = inputs.activation(s.wide_bands, c), tuple(weights), (*bands, inputs.real(s.bands, w))
    yield Example("", arguments, "inference")


OPERATION = Operation(
    "band_encoder",
    reference.band_encoder,
    cpu=cpu.band_encoder,
    serves=_serves,
    examples=_examples,
    differentiable=False,
)
