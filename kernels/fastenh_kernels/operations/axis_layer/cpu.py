"""``axis_layer`` on a processor; where no gradient is needed, in tiles that stay in the caches.

Between one linear map and the next a layer of the dual path passes on some 25 MB if it runs over a whole window, and
the processor waits for memory. Its sequences do not meet: a few at a time go through the whole layer. A tile never
spans two clips, so a clip gives the same numbers in any batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.axis_attention.cpu import axis_attention
from fastenh_kernels.operations.axis_layer import reference
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights

_ROWS = 1024  # of a tile: with 512 hidden units 2 MB in float32


def axis_layer(
    x: Tensor,
    weights: AxisLayerWeights,
    heads: int,
    axis: str,
    dropout: float = 0.0,
    history: int = 0,
    folded: bool = False,
) -> Tensor:
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))
    if training or dropout or history:
        return reference.axis_layer(x, weights, heads, axis, dropout, history, attention=axis_attention)
    return _in_tiles(x, weights, heads, axis)


def _in_tiles(x: Tensor, weights: AxisLayerWeights, heads: int, axis: str) -> Tensor:
    """Under an autocast all of it in the dtype of that."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    w = AxisLayerWeights(*(tensor.to(dtype) for tensor in weights))
    x = x.to(dtype)
    out = torch.empty_like(x)
    with torch.autocast("cpu", enabled=False):
        for clip, result in zip(x, out, strict=True):
            if axis == "time":
                clip, result = clip.transpose(0, 1), result.transpose(0, 1)
            count = max(1, round(_ROWS / clip.shape[1]))
            for tile, rows in zip(clip.split(count), result.split(count), strict=True):
                rows.copy_(_layer(tile, w, heads))
    return out


def _layer(x: Tensor, w: AxisLayerWeights, heads: int) -> Tensor:
    """(sequences, length, C) -> the same."""
    channels = (x.shape[-1],)
    qkv = _linear(F.layer_norm(x, channels, w.norm1_weight, w.norm1_bias), w.qkv_weight, w.qkv_bias)
    x = _linear(_attention(qkv, heads), w.out_weight, w.out_bias, x)
    hidden = _linear(F.layer_norm(x, channels, w.norm2_weight, w.norm2_bias), w.up_weight, w.up_bias, relu=True)
    return _linear(hidden, w.down_weight, w.down_bias, x)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """Linear map; plus ``residual``, or a ReLU. By oneDNN in one pass where PyTorch has that: 1.1 times as fast."""
    if not _fuses(x.dtype):
        y = F.linear(x, weight, bias)
        y = y if residual is None else y.add_(residual)
        return y.relu_() if relu else y
    fused = torch.ops.mkldnn._linear_pointwise
    if residual is None:
        return fused(x, weight, bias, "relu" if relu else "none", [], "")
    return fused.binary(x, residual, weight, bias, "add")


@lru_cache
def _fuses(dtype: torch.dtype) -> bool:
    """Whether the linear maps of torch.compile's CPU backend, no public interface, are here and take ``dtype``."""
    try:
        x = torch.eye(2, dtype=dtype)
        with torch.inference_mode():
            return bool(
                torch.equal(torch.ops.mkldnn._linear_pointwise.binary(x, x, x, x[0], "add")[1], 2 * x[1] + x[0])
            )
    except (RuntimeError, AttributeError):
        return False


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """(sequences, length, 3C) -> (sequences, length, C)."""
    sequences, length, packed = qkv.shape
    width = packed // (3 * heads)
    parts = qkv.view(sequences, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    if qkv.dtype != torch.bfloat16:
        out = F.scaled_dot_product_attention(*parts)
    else:  # the fused attention takes its products in float32 there: written out it is 1.5 times as fast
        q, k, v = parts.reshape(3, sequences * heads, length, width)
        scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=width**-0.5)
        out = torch.bmm(scores.softmax(-1), v).view(sequences, heads, length, width)
    return out.transpose(1, 2).reshape(sequences, length, heads * width)
