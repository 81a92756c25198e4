"""The second half of ``axis_layer``: output projection, residual, LN, both feed-forward maps, residual.

A tile of rows at a time: the hidden units (four times as wide as the activation) never leave the chip.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.dropout import FEED_FORWARD, HIDDEN_UNITS, PROJECTION, drop, kept, row_draws
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size, tensor_memory, warpgroups
from fastenh_kernels.shared.norm import EPS, norm_of, normalise, row_of
from fastenh_kernels.shared.relu import relu

# Before Triton 3.7 kernels of 128 rows spill (4 or 8 instructions) that read the projection's matrix whole, with 3.7
# those that read it in halves.
_BEFORE_3_7 = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)


def columns_of(width: int) -> int:
    """Of the projection's matrix at a time."""
    return min(64, width) if _BEFORE_3_7 else width


class Tiles(NamedTuple):
    """How a feed-forward kernel cuts its work."""

    rows: int
    hidden: int  # units at a time
    columns: int  # of the projection at a time
    warps: int
    stages: int
    descriptors: bool  # matrices come by a copy engine of the SM (TMA)

    def constants(self) -> dict[str, Any]:
        """As the kernels take them."""
        return {
            "M": self.rows,
            "N": self.hidden,
            "K": self.columns,
            "STAGES": self.stages,
            "DESCRIPTORS": self.descriptors,
        }

    def matrices(self, weights: AxisLayerWeights) -> dict[str, Any]:
        """Up and down matrix as the kernels take them: described in blocks of hidden units, or as they are."""
        up, down = weights.up_weight.contiguous(), weights.down_weight.contiguous()
        if self.descriptors:
            width = up.shape[1]
            up = TensorDescriptor.from_tensor(up, [self.hidden, width])
            down = TensorDescriptor.from_tensor(down, [width, self.hidden])
        return {"p_up_weight": up, "p_down_weight": down}


def has_descriptors(x: Tensor) -> bool:
    return x.element_size() == 2 and warpgroups(x.device)


@triton.jit
def load_weights(p, o_row, o_column, first_row, first_column, WIDTH: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """A block of a matrix: by a copy engine of the SM (TMA) or by the threads."""
    if DESCRIPTORS:
        b = p.load([first_row, first_column])
    else:
        b = tl.load(p + (first_row + o_row)[:, None] * WIDTH + (first_column + o_column)[None, :])
    return b


@triton.jit
def counted_again(tile, tiles):
    """The same tile, but the compiler does not know that. So it computes what depends on the tile again, instead of
    holding it in registers."""
    return tile + tl.minimum(tiles - 1 - tl.cast(tile, tl.int32), 0)


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def project_feed_forward_kernel(
    p_attended,  # (rows, C)
    p_x,  # (rows, C)
    p_out_weight,  # (C, C)
    p_out_bias,  # (C,)
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_up_weight,  # (HIDDEN, C), or its descriptor
    p_up_bias,  # (HIDDEN,)
    p_down_weight,  # (C, HIDDEN), or its descriptor
    p_down_bias,  # (C,)
    p_y,  # (rows, C), or its descriptor
    p_mid,  # (rows, C): the rows between the two halves, written where KEEP
    p_seed,  # (1,), of the dropout
    rows,
    tiles,
    programs,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    DESCRIBED: tl.constexpr,  # so is the result
    KEEP: tl.constexpr,
    DROPOUT: tl.constexpr,
    FOLDED: tl.constexpr,  # the norm adds LEVEL alone, and there is no bias behind it
    LEVEL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, K)
    o_n = tl.arange(0, N)
    o_m = tl.arange(0, M)
    o_mc = o_m[:, None] * C + o_c[None, :]
    if K == C:  # the matrix stays
        b_w = tl.load(p_out_weight + o_c[:, None] * C + o_c[None, :])  # [C, K]
    # dropout fills the registers; without it float16 spills where the counter has 32 bits
    first_tile = tl.program_id(0) if DROPOUT > 0 else tl.program_id(0).to(tl.int64)
    for i_tile in tl.range(first_tile, tiles, programs, num_stages=1, disable_licm=DROPOUT > 0):
        tile = tl.cast(i_tile, tl.int64)
        m_m = o_m[:, None] < rows - tile * M
        o_tile = tile * (M * C)
        b_x = tl.load(p_x + o_tile + o_mc, mask=m_m, other=0.0).to(tl.float32)
        b_y = row_of(p_out_bias, o_c) + (b_x if DROPOUT == 0 else tl.zeros([M, C], tl.float32))
        for first in tl.range(0, C, K, num_stages=1):
            p_a = p_attended + o_tile + o_m[:, None] * C + (first + o_k)[None, :]
            b_a = tl.load(p_a, mask=m_m, other=0.0)  # [M, K]
            if K < C:
                b_w = tl.load(p_out_weight + o_c[:, None] * C + (first + o_k)[None, :])
            b_y = tl.dot(b_a, tl.trans(b_w), b_y, input_precision=PRECISION)
        if DROPOUT > 0:
            key, o_draw = row_draws(p_seed, PROJECTION, tile * M, o_m, C, DROPOUT)
            b_x += drop(b_y, key, o_draw[:, None], o_c[None, :], 1, DROPOUT)
        else:
            b_x = b_y  # the residual rides in the accumulator
        if KEEP:
            tl.store(p_mid + o_tile + o_mc, b_x.to(p_mid.dtype.element_ty), mask=m_m)
        b_norm_weight, b_norm_bias = norm_of(p_norm_weight, p_norm_bias, o_c, FOLDED, LEVEL)
        b_n = normalise(b_x, b_norm_weight, b_norm_bias, C, EPS).to(p_out_weight.dtype.element_ty)
        b_y = row_of(p_down_bias, o_c) * (1.0 - DROPOUT) + (b_x if DROPOUT == 0 else tl.zeros([M, C], tl.float32))
        key, o_draw = row_draws(p_seed, HIDDEN_UNITS, tile * M, o_m, HIDDEN, DROPOUT)
        for first in tl.range(0, HIDDEN, N, num_stages=STAGES):
            b_up = load_weights(p_up_weight, o_n, o_c, first, 0, C, DESCRIPTORS)  # [N, C]
            b_h = tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION)
            if not FOLDED:
                b_h += row_of(p_up_bias, first + o_n)
            if DROPOUT > 0:
                b_h = kept(b_h, key, (o_draw + first)[:, None], o_n[None, :], 8, DROPOUT)
            b_h = relu(b_h, p_out_weight.dtype.element_ty)  # [M, N]
            b_down = load_weights(p_down_weight, o_c, o_n, 0, first, HIDDEN, DESCRIPTORS)  # [C, N]
            b_y = tl.dot(b_h, tl.trans(b_down), b_y, input_precision=PRECISION)
        if DROPOUT > 0:
            tile = tl.cast(counted_again(i_tile, tiles), tl.int64)  # registers are few
            o_tile, m_m = tile * (M * C), o_m[:, None] < rows - tile * M
            key, o_draw = row_draws(p_seed, FEED_FORWARD, tile * M, o_m, C, DROPOUT)
            b_y *= 1.0 / ((1.0 - DROPOUT) * (1.0 - DROPOUT))
            b_y = b_x + kept(b_y, key, o_draw[:, None], o_c[None, :], 1, DROPOUT)
        if DESCRIBED:
            p_y.store([tl.cast(tile * M, tl.int32), 0], b_y.to(p_y.dtype))
        else:
            tl.store(p_y + o_tile + o_mc, b_y.to(p_y.dtype.element_ty), mask=m_m)


def launch_project_feed_forward(
    attended: Tensor,
    x: Tensor,
    weights: AxisLayerWeights,
    mid: Tensor | None,
    dropout: float,
    seed: Tensor | None,
    folded: bool = False,
) -> Tensor:
    """Projection, residual, LN, feed-forward, residual. Contiguous (B, T, F, C) twice -> (B, T, F, C).

    ``mid`` receives the rows after the first residual: the feed-forward's gradient begins there.
    """
    hidden, width = weights.up_weight.shape
    rows = x.numel() // width
    y = torch.empty_like(x)
    sizes = _tiles(x, hidden, dropout)
    tiles = triton.cdiv(rows, sizes.rows)
    programs = min(tiles, processors(x.device))
    block = [sizes.rows, width]
    # descriptors of one block shape came out wrong on an H200 (benchmarks/NOTES.md)
    described = sizes.descriptors and block != [sizes.hidden, width]

    def cost() -> Cost:  # the projection's matrix stays in the program where it is read whole
        projection, matrices = weights.out_weight, (weights.up_weight, weights.down_weight)
        moved = size(attended, x, y, *(() if mid is None else (mid,)))
        l2 = moved + tiles * size(*matrices) + (programs if sizes.columns == width else tiles) * size(projection)
        flop = 2 * rows * sum(matrix.numel() for matrix in (projection, *matrices))
        loops = (tiles / max(programs, 1), width // sizes.columns, hidden // sizes.hidden)
        return Cost(loops, flop, l2_bytes=l2, dram_bytes=moved + size(projection, *matrices))

    launch(
        project_feed_forward_kernel,
        programs,
        cost,
        num_warps=sizes.warps,
        num_stages=sizes.stages,
        p_attended=attended,
        p_x=x,
        p_out_weight=weights.out_weight.contiguous(),
        p_out_bias=weights.out_bias,
        p_norm_weight=weights.norm2_weight,
        p_norm_bias=weights.norm2_bias,
        **sizes.matrices(weights),
        p_up_bias=weights.up_bias,
        p_down_bias=weights.down_bias,
        p_y=TensorDescriptor.from_tensor(y.view(rows, width), block) if described else y,
        p_mid=y if mid is None else mid,
        p_seed=y if seed is None else seed,
        rows=rows,
        tiles=tiles,
        programs=programs,
        C=width,
        HIDDEN=hidden,
        EPS=EPS,
        **sizes.constants(),
        DESCRIBED=described,
        KEEP=mid is not None,
        DROPOUT=dropout,
        FOLDED=folded,
        LEVEL=LEVEL,
        PRECISION=dot_precision(x),
    )
    return y


def _tiles(x: Tensor, hidden: int, dropout: float) -> Tiles:
    width = x.shape[3]
    if has_descriptors(x):
        units = 64
        if width == 64:  # blocks of 64 x 64 of both matrices came out wrong on an H200 (benchmarks/NOTES.md)
            units = 128 if hidden % 128 == 0 else 32
        columns = columns_of(width) if x.dtype == torch.float16 else width  # bfloat16 does not spill
        return Tiles(128, units, 64 if dropout else columns, 8, 2, True)
    if x.element_size() == 2:
        stages = 1 if tensor_memory(x.device) else 2  # two have 30 spill instructions there
        return Tiles(32 if dropout else 64, 64, width, 8, stages, False)
    return Tiles(16 if dropout else 32, 32, 32, 8, 1, False)
