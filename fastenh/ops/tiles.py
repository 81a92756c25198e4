"""The reference on a CPU where no gradient is needed: the same arithmetic in tiles that stay in the caches.

Between one linear map and the next a layer of the dual path passes on some 25 MB if it runs over a whole window, and
the processor waits for memory. Its sequences do not meet: a few at a time go through the whole layer. A tile never
spans two clips, so a clip gives the same numbers in any batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh.ops.types import Axis, AxisLayerWeights

_ROWS = 1024  # of a tile of a layer: with 512 hidden units 2 MB in float32
_FRAMES, _BINS = 64, 65  # of a tile of the mask


def axis_layer(x: Tensor, weights: AxisLayerWeights, heads: int, axis: Axis) -> Tensor:
    """As ``fastenh.ops.axis_layer`` without dropout; under an autocast all of it in the dtype of that."""
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


def mask_logits(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, taps: Tensor) -> Tensor:
    """``weight . relu(scale * up(z) + shift) + bias`` of ``fastenh.ops.mask_head``: (B, bins, T).

    taps: (bins, 3 F), what each (band, tap) adds to a bin. Sixty-five bins at a time see a quarter of the bands.
    """
    scale, shift, weight, bias = (tensor.flatten().to(z.dtype) for tensor in (scale, shift, weight, bias))
    logits = z.new_empty(z.shape[0], taps.shape[0], z.shape[1])
    blocks = _blocks(taps)
    with torch.autocast("cpu", enabled=False):
        for clip, result in zip(z.flatten(2, 3), logits, strict=True):
            for tile, columns in zip(clip.split(_FRAMES), result.split(_FRAMES, dim=1), strict=True):
                for (first, last, block), bins in zip(blocks, columns.split(_BINS), strict=True):
                    up = torch.bmm(block.expand(len(tile), -1, -1), tile[:, first:last])
                    hidden = torch.addcmul(shift, up, scale).relu_()
                    bins.copy_(F.linear(hidden, weight.unsqueeze(0), bias).squeeze(-1).T)
    return logits


def _blocks(taps: Tensor) -> list[tuple[int, int, Tensor]]:
    """The rows of ``taps`` in blocks: (first column, one behind the last, values) of what is not zero."""
    blocks = []
    for rows in taps.split(_BINS):
        columns = rows.any(0).nonzero()
        first, last = int(columns[0]), int(columns[-1]) + 1
        blocks.append((first, last, rows[:, first:last].contiguous()))
    return blocks
