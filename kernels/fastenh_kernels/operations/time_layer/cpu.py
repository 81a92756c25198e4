"""``time_layer`` on a processor: of the forms of its two parts."""

from __future__ import annotations

from torch import Tensor

from fastenh_kernels.operations.axis_layer.cpu import axis_layer
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.operations.norm_taps.cpu import norm_taps


def time_layer(
    x: Tensor,
    taps: tuple[Tensor, ...],
    weights: AxisLayerWeights,
    heads: int,
    ahead: int,
    history: int = 0,
    folded: bool = False,
) -> Tensor:
    norm_weight, norm_bias, weight, bias = taps
    near = norm_taps(x, norm_weight, norm_bias, weight, bias, ahead)
    return axis_layer(near, weights, heads, "time", 0.0, history, folded)
