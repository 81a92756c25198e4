"""The weights that ``axis_layer`` takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.5  # of the rows behind a norm whose weight and bias are folded away


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

    def folded(self) -> AxisLayerWeights:
        """The same layer, prepared for inference: the norms add ``LEVEL`` and do nothing else, and there are no biases
        behind them.

        Standardised rows sum to zero, so that a matrix W may have any number d added to a whole row of it. At the
        level of ``LEVEL`` the row then adds ``LEVEL`` times the sum of W + d: with the right d, its bias.
        """

        def behind(
            norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            weight = weight.float()
            bias = bias.float() + weight @ norm_bias.float()
            weight = weight * norm_weight.float()
            missing = bias / LEVEL - weight.sum(1)
            one = torch.ones_like(norm_weight)
            return one, LEVEL * one, weight + (missing / weight.shape[1]).unsqueeze(1), torch.zeros_like(bias)

        attention, feed_forward = behind(*self[:4]), behind(*self[6:10])
        return AxisLayerWeights(*attention, *self[4:6], *feed_forward, *self[10:])

    def prepared(self, dtype: torch.dtype, folded: bool) -> AxisLayerWeights:
        """Folded, unless they are, and their matrices in ``dtype``."""
        return (self if folded else self.folded()).with_matrices_in(dtype)
