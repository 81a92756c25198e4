"""The weights that ``axis_layer`` takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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

    def with_matrices_in(self, dtype: torch.dtype) -> AxisLayerWeights:
        """Matrices in that dtype; the vectors stay as they are."""
        return AxisLayerWeights(*(weight.to(dtype) if weight.ndim == 2 else weight for weight in self))
