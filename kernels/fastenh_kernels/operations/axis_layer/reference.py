"""``axis_layer`` in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.axis_attention.reference import axis_attention
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights


def axis_layer(
    x: Tensor,
    w: AxisLayerWeights,
    heads: int,
    axis: str,
    dropout: float = 0.0,
    history: int = 0,
    folded: bool = False,
    attention: Callable[..., Tensor] = axis_attention,
) -> Tensor:
    """``attention``: another form of the reference's. Folded weights are weights like others here."""
    channels = (x.shape[-1],)
    qkv = F.linear(F.layer_norm(x, channels, w.norm1_weight, w.norm1_bias), w.qkv_weight, w.qkv_bias)
    attended = F.linear(attention(qkv, heads, axis, dropout, history), w.out_weight, w.out_bias)
    x = x + F.dropout(attended, dropout)
    hidden = F.relu(F.linear(F.layer_norm(x, channels, w.norm2_weight, w.norm2_bias), w.up_weight, w.up_bias))
    return x + F.dropout(F.linear(F.dropout(hidden, dropout), w.down_weight, w.down_bias), dropout)
