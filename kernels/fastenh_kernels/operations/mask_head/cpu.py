"""``mask_head`` on a processor, where no gradient is needed: the same arithmetic in tiles that stay in the caches.

Over a whole window the upsampled tensor has some 17 MB in float32, and the processor waits for memory. A tile never
spans two clips, so a clip gives the same numbers in any batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.complex_mask.reference import complex_mask
from fastenh_kernels.operations.mask_head import reference
from fastenh_kernels.shared.upsampled import tap_matrix

_FRAMES, _BINS = 64, 65  # of a tile


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    arguments = (z, scale, shift, weight, bias, spectrum)
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments)
    if needs_gradient or torch.compiler.is_compiling():  # a graph is better off without tiles
        return reference.mask_head(*arguments)
    logits = _logits(z, scale, shift, weight, bias, spectrum.shape[1])
    return complex_mask(logits.to(spectrum.real.dtype), spectrum, "sigmoid")


def _logits(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, bins: int) -> Tensor:
    """``weight . relu(scale * up(z) + shift) + bias``: (B, bins, T). 65 bins at a time see a quarter of the bands."""
    scale, shift, weight, bias = (tensor.flatten().to(z.dtype) for tensor in (scale, shift, weight, bias))
    logits = z.new_empty(z.shape[0], bins, z.shape[1])
    blocks = _blocks(z.shape[2], bins, z.dtype)
    with torch.autocast("cpu", enabled=False):
        for clip, result in zip(z.flatten(2, 3), logits, strict=True):
            for tile, columns in zip(clip.split(_FRAMES), result.split(_FRAMES, dim=1), strict=True):
                for (first, last, block), rows in zip(blocks, columns.split(_BINS), strict=True):
                    up = torch.bmm(block.expand(len(tile), -1, -1), tile[:, first:last])
                    hidden = torch.addcmul(shift, up, scale).relu_()
                    rows.copy_(F.linear(hidden, weight.unsqueeze(0), bias).squeeze(-1).T)
    return logits


@lru_cache(maxsize=16)
def _blocks(bands: int, bins: int, dtype: torch.dtype) -> list[tuple[int, int, Tensor]]:
    """The rows of ``tap_matrix`` in blocks: (first column, one behind the last, values) of what is not zero."""
    blocks = []
    for rows in tap_matrix(bands, bins, dtype, torch.device("cpu")).split(_BINS):
        columns = rows.any(0).nonzero()
        first, last = int(columns[0]), int(columns[-1]) + 1
        blocks.append((first, last, rows[:, first:last].contiguous()))
    return blocks
