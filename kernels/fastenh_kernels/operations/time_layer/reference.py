"""``time_layer`` in PyTorch."""

from __future__ import annotations

from torch import Tensor

from fastenh_kernels.operations.axis_layer import reference
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.operations.norm_taps.reference import norm_taps


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
    return reference.axis_layer(near, weights, heads, "time", 0.0, history, folded)
