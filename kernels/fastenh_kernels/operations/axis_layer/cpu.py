"""``axis_layer`` on a processor; where no gradient is needed, in tiles that stay in the caches.

Between one linear map and the next a layer of ``dpt`` passes on some 25 MB if it runs over a whole window, and the
processor waits for memory. Its sequences do not meet: a few at a time go through the whole layer. A tile never spans
two clips, so a clip gives the same numbers in any batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastenh_kernels.operations.axis_attention.cpu import axis_attention
from fastenh_kernels.operations.axis_layer import reference
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.context import autocast_dtype, needs_gradient
from fastenh_kernels.shared.processors import linear

_BYTES = 3 << 20  # of the widest tensor of a tile
_SCORES = 2**20  # of attention at a time
_LARGE = 60  # the logarithm of sums that make a softmax subtract the largest score first
_EPS = 1e-5  # of the layer norms
_folded: Any = WeakTensorKeyDictionary()  # what ``_behind_norms`` keeps, by the first matrix of a layer


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
    dtype = autocast_dtype(x)
    with torch.autocast("cpu", enabled=False):
        x, weights = x.to(dtype), _behind_norms(weights, dtype)
        if axis == "frequency":
            return _in_tiles(x, weights, heads)
        return _in_tiles(x.transpose(1, 2), weights, heads).transpose(1, 2).contiguous()


def _behind_norms(w: AxisLayerWeights, dtype: torch.dtype) -> AxisLayerWeights:
    """The same layer for rows as ``_standardised`` gives them: the matrices behind do the rest of the norms. Weights
    that are not trained are prepared once, and again when they change."""
    if any(tensor.requires_grad or tensor.is_inference() for tensor in w):
        return _fold(w, dtype)
    state = dtype, [(tensor.data_ptr(), tensor._version) for tensor in w]
    kept = _folded.get(w.qkv_weight)
    if kept is None or kept[0] != state:
        kept = _folded[w.qkv_weight] = state, _fold(w, dtype)
    return kept[1]


def _fold(w: AxisLayerWeights, dtype: torch.dtype) -> AxisLayerWeights:
    """Matrices and biases in ``dtype``. A matrix whose rows sum to zero does not see the mean of what it is given."""

    def folded(norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        norm_weight, norm_bias, weight, bias = (_wide(tensor) for tensor in (norm_weight, norm_bias, weight, bias))
        scaled = weight * norm_weight
        centred = scaled.sub_(scaled.mean(1, keepdim=True)).mul_(math.sqrt(weight.shape[1]))
        return centred.to(dtype), torch.addmv(bias, weight, norm_bias).to(dtype)

    out, down = ((matrix.to(dtype), bias.to(dtype)) for matrix, bias in (w[4:6], w[10:]))
    return AxisLayerWeights(*w[:2], *folded(*w[:4]), *out, *w[6:8], *folded(*w[6:10]), *down)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _in_tiles(x: Tensor, w: AxisLayerWeights, heads: int) -> Tensor:
    """(B, sequences, length, C) -> the same."""
    widest = max(len(w.qkv_bias), len(w.up_bias))
    count = max(1, _BYTES // (x.shape[2] * widest * x.itemsize))
    if x.dtype == torch.bfloat16:
        count = _power_of_2(count)
    if len(x) == 1 and x.shape[1] <= count:
        return _layer(x.contiguous(), w, heads)
    out = torch.empty_like(x)
    for clip, result in zip(x, out, strict=True):
        for tile, rows in zip(clip.split(count), result.split(count), strict=True):
            rows.copy_(_layer(tile.contiguous().unsqueeze(0), w, heads)[0])
    return out


def _power_of_2(limit: int) -> int:
    """The largest one up to ``limit``, or 1: few shapes follow, for each of which oneDNN keeps 0.5 MB (a product) or
    0.1 MB (a convolution)."""
    return 1 << max(0, limit.bit_length() - 1)


def _layer(x: Tensor, w: AxisLayerWeights, heads: int) -> Tensor:
    """(1, sequences, length, C) -> the same."""
    x = linear(_attention(linear(_standardised(x), w.qkv_weight, w.qkv_bias), heads), w.out_weight, w.out_bias, x)
    hidden = linear(_standardised(x), w.up_weight, w.up_bias, activation="relu")
    return linear(hidden, w.down_weight, w.down_bias, x)


def _standardised(x: Tensor) -> Tensor:
    """Rows of (..., C) divided by sqrt(C) times their standard deviation, with their mean: what a layer norm does that
    no matrix can do. PyTorch's layer norm takes nearly twice as long."""
    channels = x.shape[-1]
    rows = x.flatten(0, -2)
    wide = torch.promote_types(x.dtype, torch.float32)  # one is taken off the other: 16 bit lose what is left
    sums = rows.sum(-1, keepdim=True, dtype=wide)
    squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide).square_()
    variances = squares.addcmul_(sums, sums, value=-1 / channels).clamp_min_(0).add_(channels * _EPS)
    return (rows * variances.rsqrt_().to(x.dtype)).view_as(x)


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """(1, sequences, length, 3C) -> (1, sequences, length, C)."""
    _, sequences, length, packed = qkv.shape
    width = packed // (3 * heads)
    parts = qkv.view(sequences, length, 3, heads, width).permute(2, 3, 0, 1, 4)
    if qkv.dtype != torch.bfloat16:
        out = F.scaled_dot_product_attention(*parts.transpose(1, 2))
        return out.transpose(1, 2).reshape(1, sequences, length, heads * width)
    # the fused attention takes its products in float32 there: written out it is 1.5 times as fast
    q, k, v = (part.flatten(0, 1) for part in parts)
    del qkv, parts  # as large as the scores that come
    out = _explicit_attention(q, k, v).view(heads, 1, sequences, length, width)
    return torch.cat(out.unbind(), -1)


def _explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(sequences, length, width) each -> the same, in place of ``q``. What a softmax is divided by waits until values
    are summed up."""
    length, width = q.shape[1:]
    count = _power_of_2(_SCORES // length**2)
    scores, unused = q.new_empty(min(count, len(q)), length, length), q.new_empty(())
    first = 0
    while first < len(q):
        count = min(count, _power_of_2(len(q) - first))
        part = slice(first, first + count)
        first += count
        rows, keys = scores[:count], k[part].transpose(1, 2)
        torch.baddbmm(unused, q[part], keys, beta=0, alpha=math.log2(math.e) * width**-0.5, out=rows)
        sums = rows.exp2_().sum(-1, keepdim=True)
        if all(2**-_LARGE < bound.item() < 2**_LARGE for bound in sums.aminmax()):
            torch.bmm(rows, v[part], out=q[part]).mul_(sums.reciprocal_())
        else:
            torch.baddbmm(unused, q[part], keys, beta=0, alpha=width**-0.5, out=rows)
            torch.bmm(torch.softmax(rows, -1, out=rows), v[part], out=q[part])
    return q
