"""The pre-LN encoder layer along one axis: LN, QKV and attention in one launch or two, and the rest in one.

A narrow layer along F takes one launch for all of it (``narrow``). Elsewhere short sequences that fill blocks of 64
take ``norm_attention``, others LN + QKV and then ``axis_attention``, and the rest is in ``feed_forward``.
Programs stay on the device and take tile after tile, so that LN + QKV reads its weights once a program, not a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.forward import launch_axis_attention, launch_axis_attention_forward
from fastenh_kernels.operations.axis_attention.sequences import softmax_sums
from fastenh_kernels.operations.axis_layer import narrow
from fastenh_kernels.operations.axis_layer.feed_forward import launch_project_feed_forward
from fastenh_kernels.operations.axis_layer.folding import launch_fold
from fastenh_kernels.operations.axis_layer.narrow_frequency_training import launch_narrow_frequency_training
from fastenh_kernels.operations.axis_layer.norm_attention import launch_norm_attention, pays
from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.context import autocast_dtype, needs_gradient
from fastenh_kernels.shared.dropout import draw_seed
from fastenh_kernels.shared.launch import (
    LARGE,
    Cost,
    dot_precision,
    launch,
    processors,
    shared_memory,
    size,
    warpgroups,
)
from fastenh_kernels.shared.norm import EPS, norm_of, normalise, row_of
from fastenh_kernels.shared.operators import like, operator
from fastenh_kernels.shared.rows import described, has_descriptors


@triton.jit
def _store(p_out, b_y, tile, m_m, first, M: tl.constexpr, N: tl.constexpr, C: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Columns from ``first`` on of a tile of (rows, 3C)."""
    if DESCRIPTORS:
        p_out.store([tl.cast(tile * M, tl.int32), first], b_y.to(p_out.dtype))
    else:
        o_y = tl.arange(0, M)[:, None] * (3 * C) + (first + tl.arange(0, N))[None, :]
        tl.store(p_out + tile * (M * 3 * C) + o_y, b_y.to(p_out.dtype.element_ty), mask=m_m)


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def norm_linear_kernel(
    p_x,  # (rows, C)
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (3C, C)
    p_bias,  # (3C,)
    p_out,  # (rows, 3C), or its descriptor
    rows,
    tiles,
    programs,
    C: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    FOLDED: tl.constexpr,  # the norm adds LEVEL alone, and there is no bias
    LEVEL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_column = tl.program_id(0) % (C // N)
    o_c = tl.arange(0, C)
    o_n = i_column * N + tl.arange(0, N)
    b_norm_weight, b_norm_bias = norm_of(p_norm_weight, p_norm_bias, o_c, FOLDED, LEVEL)
    b_wq = tl.load(p_weight + o_n[:, None] * C + o_c[None, :])  # [N, C]
    b_wk = tl.load(p_weight + (C + o_n)[:, None] * C + o_c[None, :])
    b_wv = tl.load(p_weight + (2 * C + o_n)[:, None] * C + o_c[None, :])
    if not FOLDED:
        b_bq, b_bk, b_bv = row_of(p_bias, o_n), row_of(p_bias, C + o_n), row_of(p_bias, 2 * C + o_n)
    o_m = tl.arange(0, M)
    for tile in tl.range((tl.program_id(0) // (C // N)).to(tl.int64), tiles, programs):
        m_m = o_m[:, None] < rows - tile * M
        p_rows = p_x + tile * (M * C)
        b_x = tl.load(p_rows + o_m[:, None] * C + o_c[None, :], mask=m_m, other=0.0).to(tl.float32)  # [M, C]
        b_x = normalise(b_x, b_norm_weight, b_norm_bias, C, EPS).to(p_weight.dtype.element_ty)
        b_q = tl.dot(b_x, tl.trans(b_wq), input_precision=PRECISION)
        _store(p_out, b_q if FOLDED else b_q + b_bq, tile, m_m, i_column * N, M, N, C, DESCRIPTORS)
        b_k = tl.dot(b_x, tl.trans(b_wk), input_precision=PRECISION)
        _store(p_out, b_k if FOLDED else b_k + b_bk, tile, m_m, C + i_column * N, M, N, C, DESCRIPTORS)
        b_v = tl.dot(b_x, tl.trans(b_wv), input_precision=PRECISION)
        _store(p_out, b_v if FOLDED else b_v + b_bv, tile, m_m, 2 * C + i_column * N, M, N, C, DESCRIPTORS)


def launch_norm_linear(x: Tensor, weights: AxisLayerWeights, folded: bool = False) -> Tensor:
    """LN and the packed projections. Contiguous (B, T, F, C) -> (B, T, F, 3C)."""
    width = x.shape[3]
    rows = x.numel() // width
    out = torch.empty(*x.shape[:3], 3 * width, dtype=x.dtype, device=x.device)
    m, n, warps = _tiles(x)
    parts = width // n
    tiles = triton.cdiv(rows, m)
    programs = min(tiles, (1 if m == 128 else 2) * processors(x.device))  # of two one computes while the other loads

    def cost() -> Cost:
        matrix = weights.qkv_weight
        l2 = parts * size(x) + size(out) + programs * size(matrix)
        loops = (tiles / max(programs, 1),)
        return Cost(loops, flop=2 * rows * matrix.numel(), l2_bytes=l2, dram_bytes=size(x, out, matrix))

    launch(
        norm_linear_kernel,
        parts * programs,
        cost,
        num_warps=warps,
        num_stages=1,
        p_x=x,
        p_norm_weight=weights.norm1_weight,
        p_norm_bias=weights.norm1_bias,
        p_weight=weights.qkv_weight,
        p_bias=weights.qkv_bias,
        p_out=described(out, m, n, has_descriptors(x)),
        rows=rows,
        tiles=tiles,
        programs=programs,
        C=width,
        EPS=EPS,
        M=m,
        N=n,
        FOLDED=folded,
        LEVEL=LEVEL,
        DESCRIPTORS=has_descriptors(x),
        PRECISION=dot_precision(x),
    )
    return out


def _tiles(x: Tensor) -> tuple[int, int, int]:
    """(rows, columns of each of the three matrices, warps) of a program."""
    if x.element_size() == 4:
        return 32, 16, 4
    columns = x.shape[3] if shared_memory(x.device) > LARGE else min(64, x.shape[3])
    if x.shape[3] == 64 and warpgroups(x.device):
        return 128, columns, 8
    return 64, columns, 4 if warpgroups(x.device) else 8


def launch_axis_layer(
    x: Tensor, weights: Sequence[Tensor], heads: int, axis: str, history: int, folded: bool
) -> Tensor:
    """Without dropout. (B, T, F, C) -> (B, T, F, C).

    ``weights``: the tensors of ``AxisLayerWeights`` in order, in any dtype: matrices are rounded to that of x.
    ``folded``: as ``AxisLayerWeights.folded`` gives them.
    """
    x, weights = x.contiguous(), AxisLayerWeights(*weights)
    if not history and narrow.takes(x, weights, heads, axis):
        return narrow.launch_narrow(x, weights.prepared(x.dtype, folded))
    weights = weights.with_matrices_in(x.dtype)
    if not history and pays(x, heads, axis):
        attended = launch_norm_attention(x, weights, heads, axis)
    else:
        attended = launch_axis_attention(launch_norm_linear(x, weights, folded), heads, axis, history)
    return launch_project_feed_forward(attended, x, weights, None, None, 0.0, None, folded)


def launch_axis_layer_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
    history: int,
) -> list[Tensor]:
    """``axis_layer`` with dropout, and what its gradient needs: [y, attended rows, rows between the two halves], then
    where it is ``in_one_launch`` the folded matrices, elsewhere [qkv, softmax sums], and the bits of hidden units
    unless it ``sums_on_chip``.

    ``weights``: as above. ``seed``: int64, one element, on the device. The same seed drops the same values.
    """
    x, weights = x.contiguous(), AxisLayerWeights(*weights).with_matrices_in(x.dtype)
    if in_one_launch(x, weights, heads, axis, dropout, history):
        folded = launch_fold(weights)
        return [*launch_narrow_frequency_training(x, *folded, weights, heads), *folded]
    qkv = launch_norm_linear(x, weights)
    attended, lse = launch_axis_attention_forward(qkv, heads, axis, dropout, seed, history)
    mid = torch.empty_like(x)
    opened = None if sums_on_chip(x, weights, heads, dropout) else _bits(x, weights.up_weight)
    y = launch_project_feed_forward(attended, x, weights, mid, opened, dropout, seed)
    return [y, attended, mid, qkv, lse, *([] if opened is None else [opened])]


def sums_on_chip(x: Tensor, weights: AxisLayerWeights, heads: int, dropout: float) -> bool:
    """Whether the gradients of matrices are summed by the launches that take the gradient through them."""
    return not dropout and narrow.is_narrow(x, weights, heads)


def in_one_launch(x: Tensor, weights: AxisLayerWeights, heads: int, axis: str, dropout: float, history: int) -> bool:
    """Whether the layer is one launch in training, too."""
    return not dropout and not history and narrow.takes(x, weights, heads, axis)


def _bits(x: Tensor, up_weight: Tensor) -> Tensor:
    """Empty, one for each hidden unit of each row."""
    return x.new_empty(*x.shape[:3], up_weight.shape[0] // 8, dtype=torch.uint8)


def _shape(x: Tensor, *_: object) -> Tensor:
    return like(x)


def _shapes(
    x: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
    history: int,
) -> list[Tensor]:
    given, rows = AxisLayerWeights(*weights), [like(x), like(x), like(x)]
    if in_one_launch(x, given, heads, axis, dropout, history):
        return [*rows, *(x.new_empty(weight.shape) for weight in (given.qkv_weight, given.up_weight))]
    rows += [x.new_empty(*x.shape[:3], 3 * x.shape[3]), softmax_sums(x, heads, axis)]
    return rows if sums_on_chip(x, given, heads, dropout) else [*rows, _bits(x, given.up_weight)]


axis_layer_operator = operator("axis_layer", launch_axis_layer, _shape)
axis_layer_forward = operator("axis_layer_forward", launch_axis_layer_forward, _shapes)


def axis_layer(
    x: Tensor,
    weights: AxisLayerWeights,
    heads: int,
    axis: str,
    dropout: float = 0.0,
    history: int = 0,
    folded: bool = False,
) -> Tensor:
    """What the gradient needs is kept only where one is asked for. Matrices are rounded inside of the operator, so that
    their gradients come out of it in the dtype of the parameters."""
    x = x.to(autocast_dtype(x))
    if dropout or needs_gradient(x, *weights):
        return axis_layer_forward(x, list(weights), heads, axis, dropout, draw_seed(dropout, x.device), history)[0]
    return axis_layer_operator(x, list(weights), heads, axis, history, folded)
