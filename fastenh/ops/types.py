"""What the operations take besides tensors."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Axis = Literal["frequency", "time"]
Activation = Literal["sigmoid", "tanh", "none"]


class AxisLayerWeights(NamedTuple):
    """The twelve tensors of a pre-LN transformer encoder layer of width C and feed-forward width H."""

    norm1_weight: Tensor  # (C,)
    norm1_bias: Tensor  # (C,)
    qkv_weight: Tensor  # (3C, C): rows of query, key, value
    qkv_bias: Tensor  # (3C,)
    out_weight: Tensor  # (C, C)
    out_bias: Tensor  # (C,)
    norm2_weight: Tensor  # (C,)
    norm2_bias: Tensor  # (C,)
    up_weight: Tensor  # (H, C)
    up_bias: Tensor  # (H,)
    down_weight: Tensor  # (C, H)
    down_bias: Tensor  # (C,)
