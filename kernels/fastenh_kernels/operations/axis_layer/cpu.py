"""``axis_layer`` on a processor; where no gradient is needed, in tiles that stay in the caches.

Between one linear map and the next a layer of ``dpt`` passes on some 25 MB if it runs over a whole window, and the
processor waits for memory. Its sequences do not meet: a few at a time go through the whole layer. A tile never spans
two clips, so a clip gives the same numbers in any batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.axis_attention.cpu import axis_attention
from fastenh_kernels.operations.axis_layer import reference
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.context import autocast_dtype, needs_gradient
from fastenh_kernels.shared.processors import linear

_BYTES = 3 << 20  # of the widest tensor of a tile
_SCORES = 2**20  # of attention at a time
_LARGE = 60  # the logarithm of sums that make a softmax subtract the largest score first


def axis_layer(
    x: Tensor,
    weights: AxisLayerWeights,
    heads: int,
    axis: str,
    dropout: float = 0.0,
    history: int = 0,
    folded: bool = False,
) -> Tensor:
    if needs_gradient(x, *weights) or dropout or history:
        return reference.axis_layer(x, weights, heads, axis, dropout, history, attention=axis_attention)
    return _in_tiles(x, weights, heads, axis)


def _in_tiles(x: Tensor, weights: AxisLayerWeights, heads: int, axis: str) -> Tensor:
    """Under an autocast all of it in the dtype of that."""
    dtype = autocast_dtype(x)
    of_norms = torch.promote_types(dtype, torch.float32)  # beside rows in 16 bit it is faster, too
    named = zip(weights._fields, weights, strict=True)
    w = AxisLayerWeights(*(tensor.to(of_norms if name.startswith("norm") else dtype) for name, tensor in named))
    x = x.to(dtype)
    out = torch.empty_like(x)
    widest = max(len(w.qkv_bias), len(w.up_bias))
    with torch.autocast("cpu", enabled=False):
        for clip, result in zip(x, out, strict=True):
            if axis == "time":
                clip, result = clip.transpose(0, 1), result.transpose(0, 1)
            count = max(1, _BYTES // (clip.shape[1] * widest * x.itemsize))
            for tile, rows in zip(clip.split(count), result.split(count), strict=True):
                rows.copy_(_layer(tile.contiguous().unsqueeze(0), w, heads)[0])
    return out


def _layer(x: Tensor, w: AxisLayerWeights, heads: int) -> Tensor:
    """(1, sequences, length, C) -> the same."""
    channels = (x.shape[-1],)
    normed = F.layer_norm(x, channels, w.norm1_weight, w.norm1_bias)
    x = linear(_attention(linear(normed, w.qkv_weight, w.qkv_bias), heads), w.out_weight, w.out_bias, x)
    hidden = linear(F.layer_norm(x, channels, w.norm2_weight, w.norm2_bias), w.up_weight, w.up_bias, activation="relu")
    return linear(hidden, w.down_weight, w.down_bias, x)


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """(1, sequences, length, 3C) -> (1, sequences, length, C)."""
    _, sequences, length, packed = qkv.shape
    width = packed // (3 * heads)
    parts = qkv.view(sequences, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    if qkv.dtype != torch.bfloat16:
        out = F.scaled_dot_product_attention(*parts)
    else:  # the fused attention takes its products in float32 there: written out it is 1.5 times as fast
        copied = parts.reshape(3, sequences * heads, length, width)
        del qkv, parts  # as large as the scores that come
        out = _explicit_attention(*copied).view(sequences, heads, length, width)
    return out.transpose(1, 2).reshape(1, sequences, length, heads * width)


def _explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(sequences, length, width) each -> the same. What a softmax is divided by waits until values are summed up."""
    length, width = q.shape[1:]
    out = torch.empty_like(q)
    count = 1 << max(0, (_SCORES // length**2).bit_length() - 1)  # a power of 2: few different shapes
    scores, unused = q.new_empty(min(count, len(q)), length, length), q.new_empty(())
    for first in range(0, len(q), count):
        part = slice(first, first + count)
        rows, keys = scores[: len(q[part])], k[part].transpose(1, 2)
        torch.baddbmm(unused, q[part], keys, beta=0, alpha=math.log2(math.e) * width**-0.5, out=rows)
        sums = rows.exp2_().sum(-1, keepdim=True)
        torch.bmm(rows, v[part], out=out[part]).div_(sums)
        if not all(2**-_LARGE < bound.item() < 2**_LARGE for bound in sums.aminmax()):
            torch.baddbmm(unused, q[part], keys, beta=0, alpha=width**-0.5, out=rows)
            torch.bmm(torch.softmax(rows, -1, out=rows), v[part], out=out[part])
    return out
