"""Layer norm, a depthwise convolution over frames, and the residual."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT_COMPLEX, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.norm_taps import cpu, reference

_TAPS, _AHEAD = 7, 3  # of the model that is shipped
_MOST_TAPS = 8
_MOST_CHANNELS = 128


def norm_taps(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, ahead: int) -> Tensor:
    """``x + convolution(layer_norm(x))``, the convolution depthwise over frames.

    The conditional position encoding of Chu et al. 2023, "Conditional positional encodings for vision transformers",
    along time: attention knows no before and after.
    x: (B, T, F, C); weight: (C, taps); norm_weight, norm_bias, bias: (C,). ahead: taps on frames behind the present
    one; frames outside of the clip count as zeros. Returns (B, T, F, C).
    """
    return OPERATION(x, norm_weight, norm_bias, weight, bias, ahead)


def _serves(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, ahead: int) -> str:
    channels, taps = weight.shape
    if channels & (channels - 1) or not 16 <= channels <= _MOST_CHANNELS:
        return f"{channels} channels: the kernel takes powers of 2 from 16 to {_MOST_CHANNELS}"
    if not 2 <= taps <= _MOST_TAPS:
        return f"{taps} taps: the kernel takes 2 to {_MOST_TAPS}"
    return ""


def _examples(inputs: Inputs) -> Iterator[Example]:
    c = DPT_COMPLEX.channels
    x, norm_weight = inputs.activation(DPT_COMPLEX.bands, c), 1 + 0.1 * inputs.vector(c)
    weight = inputs.real(c, _TAPS, scale=0.4)
    yield Example("", (x, norm_weight, inputs.vector(c), weight, inputs.vector(c), _AHEAD))


OPERATION = Operation("norm_taps", reference.norm_taps, cpu=cpu.norm_taps, serves=_serves, examples=_examples)
