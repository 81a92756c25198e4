"""A layer along time behind its position encoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fastenh_kernels.examples import HISTORY, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations import axis_layer, norm_taps
from fastenh_kernels.operations.axis_layer import AxisLayerWeights
from fastenh_kernels.operations.time_layer import cpu, reference


def time_layer(
    x: Tensor,
    taps: Sequence[Tensor],
    weights: AxisLayerWeights,
    heads: int,
    ahead: int,
    history: int = 0,
    folded: bool = False,
) -> Tensor:
    """``axis_layer(norm_taps(x, *taps, ahead), weights, heads, "time", 0.0, history, folded)``, for inference.

    x: (B, T, F, C); taps: the norm's weight and bias (C,), the weight (C, taps) and its bias (C,). Returns
    (B, T, F, C).
    """
    return OPERATION(x, tuple(taps), weights, heads, ahead, history, folded)


def _serves(
    x: Tensor,
    taps: tuple[Tensor, ...],
    weights: AxisLayerWeights,
    heads: int,
    ahead: int,
    history: int = 0,
    folded: bool = False,
) -> str:
    of_taps = norm_taps.OPERATION.serves(x, *taps, ahead)
    return of_taps or axis_layer.OPERATION.serves(x, weights, heads, "time", 0.0, history)


def _examples(inputs: Inputs) -> Iterator[Example]:
    (of_taps,) = norm_taps.OPERATION.examples(inputs)
    x, *taps, ahead = of_taps.arguments
    layers = {example.label: example.arguments for example in axis_layer.OPERATION.examples(inputs)}
    _, weights, heads, *_ = layers["dpt_complex, time, folded"]
    for label, history in (("", 0), (f"history {HISTORY}", HISTORY)):
        yield Example(label, (x, tuple(taps), weights, heads, ahead, history, True), "inference")


OPERATION = Operation(
    "time_layer",
    reference.time_layer,
    cpu=cpu.time_layer,
    serves=_serves,
    examples=_examples,
    differentiable=False,
)
