"""The gradient of ``axis_layer``'s second half, as far as rows go.

Normalised rows are computed again. Of the hidden units it is enough which of them are open, a bit each from the forward
pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_layer.feed_forward import Tiles, load_weights
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.bits import where_open
from fastenh_kernels.shared.dropout import FEED_FORWARD, PROJECTION, drop, row_draws
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size
from fastenh_kernels.shared.norm import EPS, row_moments, row_of, through_norm
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows, store_rows


@triton.jit
def store_statistics(b_delta, p_lse, p_statistics, o_row, o_h, rows, frames, bands, padded,
                      H: tl.constexpr, TIME: tl.constexpr):  # fmt: skip
    """Softmax sums and sums of attended rows times their gradients, [M, heads], in the order of the sequences."""
    o_t, o_f = o_row // bands, o_row % bands
    if TIME:
        o_sequence, o_position, length = o_t // frames * bands + o_f, o_t % frames, frames
    else:
        o_sequence, o_position, length = o_t, o_f, bands
    o = o_sequence.to(tl.int64)[:, None] * H + o_h[None, :]
    m = (o_row < rows)[:, None]
    p_s = p_statistics + o * (2 * padded) + o_position[:, None]
    tl.store(p_s, tl.load(p_lse + o * length + o_position[:, None], mask=m), mask=m)
    tl.store(p_s + padded, b_delta, mask=m)


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "frames", "bands", "padded"])
def feed_forward_gradient_kernel(
    p_grad_y,  # (rows, C), or its descriptor
    p_mid,  # (rows, C), or its descriptor
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_up_weight,  # (HIDDEN, C), or its descriptor
    p_down_weight,  # (C, HIDDEN), or its descriptor
    p_open,  # (rows, HIDDEN // 8): which hidden units are open, and kept
    p_out_weight,  # (C, C)
    p_attended,  # (rows, C), or its descriptor
    p_lse,  # (sequences * H, length): of the attention, see ``row_statistics_kernel``
    p_statistics,  # (sequences * H, 2, padded), written but for what is behind the end
    p_normed,  # (rows, C), or its descriptor, written: the normalised rows of mid
    p_grad_mid,  # (rows, C), or its descriptor, written
    p_grad_attended,  # (rows, C), or its descriptor, written
    p_sums,  # (tiles, 2, C), written: of the gradients of norm weight and down bias
    p_dropped_y,  # (rows, C), or its descriptor, written where DROPOUT: what is left of grad_y
    p_dropped_mid,  # (rows, C), or its descriptor, written where DROPOUT: what is left of grad_mid
    p_seed,  # (1,), of the dropout
    rows,
    tiles,
    programs,
    frames,
    bands,
    padded,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    H: tl.constexpr,
    TIME: tl.constexpr,  # the attention is along time
    DESCRIPTORS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c = tl.arange(0, C)
    o_n = tl.arange(0, N)
    o_k = tl.arange(0, K)
    o_m = tl.arange(0, M)
    dtype: tl.constexpr = p_out_weight.dtype.element_ty
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, programs, num_stages=1, disable_licm=True):
        b_x = load_rows(p_mid, o_m, o_c, tile, 0, rows, C, DESCRIPTORS).to(tl.float32)
        b_mean, b_inverse = row_moments(b_x, C, EPS)
        b_x = (b_x - b_mean[:, None]) * b_inverse[:, None]
        b_n = (b_x * row_of(p_norm_weight, o_c) + row_of(p_norm_bias, o_c)).to(dtype)
        store_rows(p_normed, b_n, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_dy = load_rows(p_grad_y, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)  # [M, C]
        p_tile_sums = p_sums + tile * (2 * C) + o_c
        if DROPOUT > 0:
            key, o_draw = row_draws(p_seed, FEED_FORWARD, tile * M, o_m, C, DROPOUT)
            b_dy = drop(b_dy.to(tl.float32), key, o_draw[:, None], o_c[None, :], 1, DROPOUT)
            tl.store(p_tile_sums + C, tl.sum(b_dy, 0))
            b_dy = b_dy.to(dtype)
            store_rows(p_dropped_y, b_dy, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_dn = tl.zeros([M, C], tl.float32)
        for first in tl.range(0, HIDDEN, N, num_stages=STAGES):
            b_up = load_weights(p_up_weight, o_n, o_c, first, 0, C, DESCRIPTORS)  # [N, C]
            b_down = load_weights(p_down_weight, o_c, o_n, 0, first, HIDDEN, DESCRIPTORS)  # [C, N]
            b_dh = tl.dot(b_dy, b_down, input_precision=PRECISION)  # [M, N]
            p_bits = p_open + (tile * (M * HIDDEN // 8) + first // 8)
            p_bits += o_m[:, None] * (HIDDEN // 8) + tl.arange(0, N // 8)[None, :]
            b_open = tl.load(p_bits, mask=o_m[:, None] < rows - tile * M, other=0)
            b_dh = where_open(b_dh, b_open).to(b_dy.dtype)
            b_dn = tl.dot(b_dh, b_up, b_dn, input_precision=PRECISION)
        if DROPOUT > 0:
            b_dn *= 1.0 / (1.0 - DROPOUT)
        b_x = load_rows(p_mid, o_m, o_c, tile, 0, rows, C, DESCRIPTORS).to(tl.float32)  # again: registers are few
        b_x = (b_x - b_mean[:, None]) * b_inverse[:, None]
        tl.store(p_tile_sums, tl.sum(b_dn * b_x, 0))
        b_dx = through_norm(b_dn, b_x, b_inverse, row_of(p_norm_weight, o_c), C)
        b_dy = load_rows(p_grad_y, o_m, o_c, tile, 0, rows, C, DESCRIPTORS).to(tl.float32)
        if DROPOUT == 0:
            tl.store(p_tile_sums + C, tl.sum(b_dy, 0))
        b_dx = (b_dx + b_dy).to(dtype)
        store_rows(p_grad_mid, b_dx, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        if DROPOUT > 0:
            key, o_draw = row_draws(p_seed, PROJECTION, tile * M, o_m, C, DROPOUT)
            b_dx = drop(b_dx.to(tl.float32), key, o_draw[:, None], o_c[None, :], 1, DROPOUT).to(dtype)
            store_rows(p_dropped_mid, b_dx, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        for first in tl.range(0, C, K, num_stages=1):
            b_w = tl.load(p_out_weight + o_c[:, None] * C + (first + o_k)[None, :])  # [C, K]
            b_da = tl.dot(b_dx, b_w, input_precision=PRECISION).to(dtype)
            store_rows(p_grad_attended, b_da, o_m, o_k, tile, first, rows, C, DESCRIPTORS)
            b_a = load_rows(p_attended, o_m, o_k, tile, first, rows, C, DESCRIPTORS).to(tl.float32)
            b_delta = tl.sum(tl.reshape(b_a * b_da.to(tl.float32), (M, K * H // C, C // H)), 2) * (1.0 - DROPOUT)
            o_row, o_h = tl.cast(tile * M, tl.int32) + o_m, first * H // C + tl.arange(0, K * H // C)
            store_statistics(b_delta, p_lse, p_statistics, o_row, o_h, rows, frames, bands, padded, H, TIME)


class FeedForwardGradient(NamedTuple):
    """What ``launch_feed_forward_gradient`` gives."""

    mid: Tensor  # (B, T, F, C)
    attended: Tensor  # (B, T, F, C)
    normed: Tensor  # (B, T, F, C): no gradient, the normalised rows of mid
    sums: Tensor  # (tiles, 2, C), float32: of the gradients of norm weight and down bias
    dropped_y: Tensor  # (B, T, F, C): grad_y after dropout
    dropped_mid: Tensor  # (B, T, F, C): the gradient of mid after dropout


def launch_feed_forward_gradient(
    grad_y: Tensor,
    mid: Tensor,
    opened: Tensor,
    attended: Tensor,
    lse: Tensor,
    statistics: Tensor,
    weights: AxisLayerWeights,
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
) -> FeedForwardGradient:
    """Through the second half to mid, and through the projection to the attended rows. ``statistics`` receives what the
    gradient of the attention needs of its rows."""
    hidden, width = weights.up_weight.shape
    rows = mid.numel() // width
    sizes = _tiles(mid, heads, dropout)
    tiles = triton.cdiv(rows, sizes.rows)
    programs = min(tiles, processors(mid.device))
    normed, grad_mid, grad_attended = (torch.empty_like(mid) for _ in range(3))
    dropped_y, dropped_mid = (torch.empty_like(mid) for _ in range(2)) if dropout else (grad_y, grad_mid)
    sums = torch.empty(tiles, 2, width, dtype=torch.float32, device=mid.device)

    def described_rows(tensor: Tensor) -> Any:
        return described(tensor, sizes.rows, width, sizes.descriptors)

    def cost() -> Cost:  # rows are read twice, the second time from the caches
        projection, matrices = weights.out_weight, (weights.up_weight, weights.down_weight)
        moved = size(grad_y, mid, opened, attended, lse, statistics, normed, grad_mid, grad_attended, sums)
        l2 = moved + size(grad_y, mid) + tiles * size(projection, *matrices)
        flop = 2 * rows * (2 * weights.up_weight.numel() + projection.numel())
        loops = (tiles / max(programs, 1), hidden // sizes.hidden, width // sizes.columns)
        return Cost(loops, flop, l2_bytes=l2, dram_bytes=moved + size(*matrices))

    launch(
        feed_forward_gradient_kernel,
        programs,
        cost,
        num_warps=sizes.warps,
        num_stages=sizes.stages,
        p_grad_y=described_rows(grad_y),
        p_mid=described_rows(mid),
        p_norm_weight=weights.norm2_weight,
        p_norm_bias=weights.norm2_bias,
        **sizes.matrices(weights),
        p_open=opened,
        p_out_weight=weights.out_weight.contiguous(),
        p_attended=described(attended, sizes.rows, sizes.columns, sizes.descriptors),
        p_lse=lse,
        p_statistics=statistics,
        p_normed=described_rows(normed),
        p_grad_mid=described_rows(grad_mid),
        p_grad_attended=described(grad_attended, sizes.rows, sizes.columns, sizes.descriptors),
        p_sums=sums,
        p_dropped_y=described_rows(dropped_y),
        p_dropped_mid=described_rows(dropped_mid),
        p_seed=sums if seed is None else seed,
        rows=rows,
        tiles=tiles,
        programs=programs,
        frames=mid.shape[1],
        bands=mid.shape[2],
        padded=statistics.shape[2],
        C=width,
        HIDDEN=hidden,
        H=heads,
        TIME=axis == "time",
        EPS=EPS,
        **sizes.constants(),
        DROPOUT=dropout,
        PRECISION=dot_precision(mid),
    )
    return FeedForwardGradient(grad_mid, grad_attended, normed, sums, dropped_y, dropped_mid)


def _tiles(x: Tensor, heads: int, dropout: float) -> Tiles:
    width = x.shape[3]
    if has_descriptors(x):
        return Tiles(128, 64, width, 8, 2, True)
    if x.element_size() == 2:
        return Tiles(32 if dropout else 64, 32, width, 8, 2, False)
    return Tiles(16, 32, max(64, width // heads), 8, 1, False)  # columns of whole heads
