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
from fastenh_kernels.shared.bits import packed
from fastenh_kernels.shared.dropout import FEED_FORWARD, HIDDEN_UNITS, PROJECTION, drop, kept, row_draws
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size, tensor_memory
from fastenh_kernels.shared.norm import EPS, norm_of, normalise, row_of
from fastenh_kernels.shared.rounding import relu
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows, store_rows


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


@triton.jit
def load_weights(p, o_row, o_column, first_row, first_column, WIDTH: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """A block of a matrix: by a copy engine of the SM (TMA) or by the threads."""
    if DESCRIPTORS:
        b = p.load([first_row, first_column])
    else:
        b = tl.load(p + (first_row + o_row)[:, None] * WIDTH + (first_column + o_column)[None, :])
    return b


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
    p_y,  # (rows, C), or its descriptor, as the other rows
    p_mid,  # (rows, C): the rows between the two halves, written where KEEP
    p_open,  # (rows, HIDDEN // 8), written where BITS: the hidden units that are open, and kept, as of ``packed``
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
    KEEP: tl.constexpr,
    BITS: tl.constexpr,
    DROPOUT: tl.constexpr,
    FOLDED: tl.constexpr,  # the norm adds LEVEL alone, and there is no bias behind it
    LEVEL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, K)
    o_n = tl.arange(0, N)
    o_m = tl.arange(0, M)
    if K == C:  # the matrix stays
        b_w = tl.load(p_out_weight + o_c[:, None] * C + o_c[None, :])  # [C, K]
    for tile in tl.range(
        tl.program_id(0).to(tl.int64), tiles, programs, num_stages=1, disable_licm=DESCRIPTORS or DROPOUT > 0
    ):
        b_x = load_rows(p_x, o_m, o_c, tile, 0, rows, C, DESCRIPTORS).to(tl.float32)
        b_y = row_of(p_out_bias, o_c) + (b_x if DROPOUT == 0 else tl.zeros([M, C], tl.float32))
        for first in tl.range(0, C, K, num_stages=1):
            b_a = load_rows(p_attended, o_m, o_k, tile, first, rows, C, DESCRIPTORS)  # [M, K]
            if K < C:
                b_w = tl.load(p_out_weight + o_c[:, None] * C + (first + o_k)[None, :])
            b_y = tl.dot(b_a, tl.trans(b_w), b_y, input_precision=PRECISION)
        if DROPOUT > 0:
            key, o_draw = row_draws(p_seed, PROJECTION, tile * M, o_m, C, DROPOUT)
            b_x += drop(b_y, key, o_draw[:, None], o_c[None, :], 1, DROPOUT)
        else:
            b_x = b_y  # the residual rides in the accumulator
        if KEEP:
            store_rows(p_mid, b_x.to(p_out_weight.dtype.element_ty), o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
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
            if BITS:
                p_bits = p_open + (tile * (M * HIDDEN // 8) + first // 8)
                p_bits += o_m[:, None] * (HIDDEN // 8) + tl.arange(0, N // 8)[None, :]
                tl.store(p_bits, packed(b_h > 0.0), mask=o_m[:, None] < rows - tile * M)
            b_h = relu(b_h, p_out_weight.dtype.element_ty)  # [M, N]
            b_down = load_weights(p_down_weight, o_c, o_n, 0, first, HIDDEN, DESCRIPTORS)  # [C, N]
            b_y = tl.dot(b_h, tl.trans(b_down), b_y, input_precision=PRECISION)
        if DROPOUT > 0:
            key, o_draw = row_draws(p_seed, FEED_FORWARD, tile * M, o_m, C, DROPOUT)
            b_y *= 1.0 / ((1.0 - DROPOUT) * (1.0 - DROPOUT))
            b_y = b_x + kept(b_y, key, o_draw[:, None], o_c[None, :], 1, DROPOUT)
        store_rows(p_y, b_y.to(p_out_weight.dtype.element_ty), o_m, o_c, tile, 0, rows, C, DESCRIPTORS)


def launch_project_feed_forward(
    attended: Tensor,
    x: Tensor,
    weights: AxisLayerWeights,
    mid: Tensor | None,
    opened: Tensor | None,
    dropout: float,
    seed: Tensor | None,
    folded: bool = False,
) -> Tensor:
    """Projection, residual, LN, feed-forward, residual. Contiguous (B, T, F, C) twice -> (B, T, F, C).

    ``mid``, where it is given, receives the rows after the first residual, where the gradient of the feed-forward
    begins, and ``opened`` which hidden units are open: (B, T, F, HIDDEN // 8) bytes.
    """
    hidden, width = weights.up_weight.shape
    rows = x.numel() // width
    y = torch.empty_like(x)
    sizes = _tiles(x, hidden, dropout, mid is not None)
    tiles = triton.cdiv(rows, sizes.rows)
    programs = min(tiles, processors(x.device))

    def cost() -> Cost:  # the projection's matrix stays in the program where it is read whole
        projection, matrices = weights.out_weight, (weights.up_weight, weights.down_weight)
        moved = size(attended, x, y, *(t for t in (mid, opened) if t is not None))
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
        p_attended=described(attended, sizes.rows, sizes.columns, sizes.descriptors),
        p_x=described(x, sizes.rows, width, sizes.descriptors),
        p_out_weight=weights.out_weight.contiguous(),
        p_out_bias=weights.out_bias,
        p_norm_weight=weights.norm2_weight,
        p_norm_bias=weights.norm2_bias,
        **sizes.matrices(weights),
        p_up_bias=weights.up_bias,
        p_down_bias=weights.down_bias,
        p_y=described(y, sizes.rows, width, sizes.descriptors),
        p_mid=described(y if mid is None else mid, sizes.rows, width, sizes.descriptors),
        p_open=y if opened is None else opened,
        p_seed=y if seed is None else seed,
        rows=rows,
        tiles=tiles,
        programs=programs,
        C=width,
        HIDDEN=hidden,
        EPS=EPS,
        **sizes.constants(),
        KEEP=mid is not None,
        BITS=opened is not None,
        DROPOUT=dropout,
        FOLDED=folded,
        LEVEL=LEVEL,
        PRECISION=dot_precision(x),
    )
    return y


def _tiles(x: Tensor, hidden: int, dropout: float, keep: bool) -> Tiles:
    width = x.shape[3]
    if has_descriptors(x):
        units = 64
        if width == 64:  # blocks of 64 x 64 of both matrices came out wrong on an H200 (benchmarks/NOTES.md)
            units = 128 if hidden % 128 == 0 else 32
        return Tiles(128, units, 64 if dropout else width, 8, 2, True)  # with dropout the whole width spills
    if x.element_size() == 2:
        stages = 1 if tensor_memory(x.device) else 2  # two have 30 spill instructions there
        return Tiles(32 if dropout else 64, 64, width, 8, stages, False)
    return Tiles(16 if dropout or keep else 32, 32, 32, 8, 1, False)
