"""The linear map from the decoder's z to the bins of the spectrum, and back, in small dense blocks.

Row (band, tap) of z, 3 a band; bin f takes row f + k - 1 of the upsampled tap k (rows outside are zero): a band at
distance d from the row's position among the bands weighs max(0, 1 - d), the first and last band on to the edges
(align_corners=False). At most six entries a bin, so that neighbours draw on neighbours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

_BAND_BLOCK = {2: 64, 4: 32}  # bytes of a value: most bins that a block of bands touches, and most rows of it


class BandBlocks(NamedTuple):
    """Blocks of bands: their rows of z, the window of bins that those touch, the rows that those bins draw on."""

    up: Tensor  # (blocks, N, K): bins of the window from rows
    down: Tensor  # (blocks, M, N): the transposed map, own rows from bins
    around: Tensor  # (blocks, M, K): both after each other, over all bins
    ones: Tensor  # (blocks, M), float32: own rows of the transposed map applied to ones
    # (blocks, 6): first row to draw on, first bin, first that no block before has, end of these, first own row, end
    bounds: Tensor


@lru_cache(maxsize=16)
def upsampling_blocks(
    bands: int, bins: int, block: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The map in blocks of bins: (blocks, block, K), and each block's first row."""
    matrix = _upsampling(bands, bins)
    blocks = triton.cdiv(bins, block)
    matrix = torch.cat([matrix, matrix.new_zeros(blocks * block - bins, matrix.shape[1])]).view(blocks, block, -1)
    used = matrix.abs().amax(1) > 0  # (blocks, bands * taps)
    first = used.int().argmax(1)
    last = matrix.shape[2] - 1 - used.flip(1).int().argmax(1)
    inner = _power(int((last - first).max()) + 1)
    starts = first.clamp_max(max(0, matrix.shape[2] - inner))
    padded = torch.nn.functional.pad(matrix, (0, inner))
    columns = (starts[:, None] + torch.arange(inner))[:, None, :].expand(-1, block, -1)
    return padded.gather(2, columns).to(device=device, dtype=dtype), starts.int().to(device)


@lru_cache(maxsize=16)
def band_blocks(bands: int, bins: int, dtype: torch.dtype, device: torch.device) -> BandBlocks:
    """The map and its transpose in blocks of bands."""
    matrix = _upsampling(bands, bins)
    per_block = _bands_of_a_block(matrix, _BAND_BLOCK[dtype.itemsize])
    own = [slice(3 * band, 3 * min(bands, band + per_block)) for band in range(0, bands, per_block)]
    windows = [_touched(matrix[:, rows].abs().sum(1)) for rows in own]
    sources = [_touched(matrix[window].abs().sum(0)) for window in windows]
    n, k = (_power(max(span.stop - span.start for span in spans)) for spans in (windows, sources))
    m = _power(3 * per_block)
    up, down, around, ones, edges, end = [], [], [], [], [], 0
    for rows, window, source in zip(own, windows, sources, strict=True):
        up.append(_padded(matrix[window, source], n, k))
        down.append(_padded(matrix[window, rows].T, m, n))
        around.append(_padded(matrix[:, rows].T @ matrix[:, source], m, k))
        ones.append(_padded(matrix[:, rows].sum(0)[:, None], m, 1)[:, 0])
        edges.append([source.start, window.start, end, window.stop, rows.start, rows.stop])
        end = max(end, window.stop)
    ups, downs, arounds = (torch.stack(blocks).to(device=device, dtype=dtype) for blocks in (up, down, around))
    bounds = torch.tensor(edges, dtype=torch.int32)
    return BandBlocks(ups, downs, arounds, torch.stack(ones).float().to(device), bounds.to(device))


def _upsampling(bands: int, bins: int) -> Tensor:
    """(bins, 3 * bands), in float64."""
    row = torch.arange(bins)[:, None] + torch.arange(-1, 2)  # (bins, taps)
    position = ((row.double() + 0.5) * bands / bins - 0.5).clamp(0, bands - 1)
    weights = (1 - (position[..., None] - torch.arange(bands)).abs()).clamp_min(0)  # (bins, taps, bands)
    weights = weights * ((row >= 0) & (row < bins))[..., None]
    return weights.transpose(1, 2).flatten(1)


def _bands_of_a_block(matrix: Tensor, most: int) -> int:
    """As many as touch no more than ``most`` bins and have no more rows, in blocks of about one size."""
    bands = matrix.shape[1] // 3

    def fits(count: int) -> bool:
        starts = range(0, bands, count)
        spans = [_touched(matrix[:, 3 * band : 3 * (band + count)].abs().sum(1)) for band in starts]
        return 3 * count <= most and all(span.stop - span.start <= most for span in spans)

    count = next((count for count in range(min(bands, most // 3), 1, -1) if fits(count)), 1)
    return triton.cdiv(bands, triton.cdiv(bands, count))


def _touched(weights: Tensor) -> slice:
    """From the first to the last that is not zero; empty where all are."""
    places = weights.nonzero().flatten().tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0, 0)


def _padded(block: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(block, (0, columns - block.shape[1], 0, rows - block.shape[0]))


def _power(values: int) -> int:
    return max(16, triton.next_power_of_2(values))
