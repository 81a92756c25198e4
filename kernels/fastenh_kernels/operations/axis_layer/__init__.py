"""A transformer encoder layer along one axis of a dual path."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT, DPT_COMPLEX, HISTORY, Inputs, Shape
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.axis_attention import Axis, serves_heads
from fastenh_kernels.operations.axis_layer import cpu, reference
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights as AxisLayerWeights


def axis_layer(
    x: Tensor,
    weights: AxisLayerWeights,
    heads: int,
    axis: Axis,
    dropout: float = 0.0,
    history: int = 0,
    folded: bool = False,
) -> Tensor:
    """A pre-LN transformer encoder layer along one axis, ReLU in between its two feed-forward maps.

    x: (B, T, F, C). dropout: probability, on attention weights, hidden units and both residual branches.
    history: positions that attention sees, the present one and those before it; 0 for all, before and after. folded:
    the weights are those of ``AxisLayerWeights.folded``, which spare work at inference. Returns (B, T, F, C).
    """
    return OPERATION(x, weights, heads, axis, dropout, history, folded)


def _serves(
    x: Tensor,
    weights: AxisLayerWeights,
    heads: int,
    axis: Axis,
    dropout: float = 0.0,
    history: int = 0,
    folded: bool = False,
) -> str:
    hidden, width = weights.up_weight.shape
    if width not in (64, 128) or hidden % 64:
        return f"width {width}, hidden width {hidden}: the kernel takes 64 or 128, and multiples of 64"
    return serves_heads(heads, width)


def _examples(inputs: Inputs) -> Iterator[Example]:
    for name, shape in (("dpt", DPT), ("dpt_complex", DPT_COMPLEX)):
        x, weights = inputs.activation(shape.bands, shape.channels), _weights(inputs, shape)
        folded = weights.prepared(inputs.dtype, False)
        for axis in ("frequency", "time"):
            yield Example(f"{name}, {axis}", (x, weights, shape.heads, axis))
            yield Example(f"{name}, {axis}, folded", (x, folded, shape.heads, axis, 0.0, 0, True), "inference")
        if shape is DPT_COMPLEX:
            yield Example(f"{name}, time, history {HISTORY}", (x, weights, shape.heads, "time", 0.0, HISTORY))


def _weights(inputs: Inputs, shape: Shape) -> AxisLayerWeights:
    c, h = shape.channels, shape.hidden
    return AxisLayerWeights(
        norm1_weight=1 + 0.1 * inputs.vector(c),
        norm1_bias=inputs.vector(c),
        qkv_weight=inputs.real(3 * c, c, scale=0.1),
        qkv_bias=inputs.vector(3 * c),
        out_weight=inputs.real(c, c, scale=0.1),
        out_bias=inputs.vector(c),
        norm2_weight=1 + 0.1 * inputs.vector(c),
        norm2_bias=inputs.vector(c),
        up_weight=inputs.real(h, c, scale=0.1),
        up_bias=inputs.vector(h),
        down_weight=inputs.real(c, h, scale=0.1),
        down_bias=inputs.vector(c),
    )


OPERATION = Operation("axis_layer", reference.axis_layer, cpu=cpu.axis_layer, serves=_serves, examples=_examples)
