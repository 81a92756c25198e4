"""The gradient of a narrow layer's second half in one launch: of its rows and of its three matrices.

The matrices of a layer of 64 channels and the sums of their gradients fit the chip together. So a program computes the
hidden units of its rows once for all that is asked of them, and no rows are read again for the matrices. The gradients
of the biases that no norm stands before are sums of rows: products with ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_layer.feed_forward_gradient import store_statistics
from fastenh_kernels.operations.axis_layer.folding import launch_unfold, standard, through_standard
from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, dot_precision, fewest_programs, launch, processors, size
from fastenh_kernels.shared.norm import EPS
from fastenh_kernels.shared.rounding import relu, rounded, where_positive
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows, store_rows

_ROWS = 128


@triton.jit(do_not_specialize=["rows", "tiles", "frames", "bands", "padded"])
def narrow_feed_forward_gradient_kernel(
    p_grad_y,  # the descriptor of (rows, C)
    p_mid,  # the descriptor of (rows, C)
    p_up_weight,  # the descriptor of (N, C), folded
    p_down_weight,  # the descriptor of (C, N)
    p_out_weight,  # the descriptor of (C, C)
    p_attended,  # the descriptor of (rows, C)
    p_lse,  # (sequences * H, length): of the attention, see ``row_statistics_kernel``
    p_statistics,  # (sequences * H, 2, padded), written but for what is behind the end, where STATISTICS
    p_grad_mid,  # the descriptor of (rows, C), written
    p_grad_attended,  # the descriptor of (rows, C), written
    p_grad_maps,  # the descriptor of (programs * 2C, N), written: of the up matrix, transposed, and the down matrix
    p_grad_out,  # the descriptor of (programs * C, C), written
    p_grad_bias,  # (programs, 2, C), written: of down and out
    rows,
    tiles,
    frames,
    bands,
    padded,
    C: tl.constexpr,
    N: tl.constexpr,  # hidden units
    EPS: tl.constexpr,
    LEVEL: tl.constexpr,
    M: tl.constexpr,
    H: tl.constexpr,
    TIME: tl.constexpr,  # the attention is along time
    STATISTICS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c, o_m = tl.arange(0, C), tl.arange(0, M)
    dtype: tl.constexpr = p_out_weight.dtype
    b_up, b_down, b_out = p_up_weight.load([0, 0]), p_down_weight.load([0, 0]), p_out_weight.load([0, 0])
    b_grad_up, b_grad_down = tl.zeros([C, N], tl.float32), tl.zeros([C, N], tl.float32)
    b_grad_out = tl.zeros([C, C], tl.float32)
    b_down_bias, b_out_bias = tl.zeros([C, 16], tl.float32), tl.zeros([C, 16], tl.float32)
    # of a constant each thread would store all it may need; of what is computed it stores its share
    b_ones = tl.where(o_m[:, None] + tl.arange(0, 16)[None, :] >= 0, 1.0, 0.0).to(dtype)
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, tl.num_programs(0), num_stages=1, disable_licm=True):
        b_mid = load_rows(p_mid, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)  # [M, C]
        b_n, b_inverse = standard(b_mid.to(tl.float32), LEVEL, C, EPS, dtype)
        b_dy = load_rows(p_grad_y, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_down_bias = tl.dot(tl.trans(b_dy), b_ones, b_down_bias, input_precision=PRECISION)
        b_h = relu(tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION), dtype)  # [M, N]
        b_grad_down = tl.dot(tl.trans(b_dy), b_h, b_grad_down, input_precision=PRECISION)
        b_dh = where_positive(tl.dot(b_dy, b_down, input_precision=PRECISION), b_h)
        b_dn = tl.dot(b_dh, b_up, input_precision=PRECISION)
        b_grad_up = tl.dot(tl.trans(b_n), b_dh, b_grad_up, input_precision=PRECISION)
        b_dx = rounded(through_standard(b_dn, b_n, b_inverse, b_dy, LEVEL, C), dtype)
        store_rows(p_grad_mid, b_dx, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_a = load_rows(p_attended, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_da = rounded(tl.dot(b_dx, b_out, input_precision=PRECISION), dtype)
        store_rows(p_grad_attended, b_da, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_grad_out = tl.dot(tl.trans(b_dx), b_a, b_grad_out, input_precision=PRECISION)
        b_out_bias = tl.dot(tl.trans(b_dx), b_ones, b_out_bias, input_precision=PRECISION)
        if STATISTICS:
            b_delta = tl.sum(tl.reshape(b_a.to(tl.float32) * b_da.to(tl.float32), (M, H, C // H)), 2)
            o_row, o_h = tl.cast(tile * M, tl.int32) + o_m, tl.arange(0, H)
            store_statistics(b_delta, p_lse, p_statistics, o_row, o_h, rows, frames, bands, padded, H, TIME)
    i_program = tl.program_id(0)
    p_grad_maps.store([i_program * (2 * C), 0], b_grad_up)
    p_grad_maps.store([i_program * (2 * C) + C, 0], b_grad_down)
    p_grad_out.store([i_program * C, 0], b_grad_out)
    p_bias = p_grad_bias + i_program * (2 * C) + o_c
    tl.store(p_bias, tl.sum(b_down_bias, 1) / 16)
    tl.store(p_bias + C, tl.sum(b_out_bias, 1) / 16)


class NarrowFeedForwardGradient(NamedTuple):
    """What ``launch_narrow_feed_forward_gradient`` gives; of the weights in float32."""

    mid: Tensor  # (B, T, F, C)
    attended: Tensor  # (B, T, F, C)
    weights: dict[str, Tensor]  # by their names in ``AxisLayerWeights``


def launch_narrow_feed_forward_gradient(
    grad_y: Tensor,
    mid: Tensor,
    attended: Tensor,
    lse: Tensor | None,
    statistics: Tensor | None,
    up: Tensor,
    weights: AxisLayerWeights,
    heads: int,
    axis: str,
) -> NarrowFeedForwardGradient:
    """Through the second half to mid, and through the projection to the attended rows, without dropout.

    up: the matrix as ``launch_fold`` gives it. ``statistics``, where it is given, receives what the gradient of the
    attention needs of its rows, from ``lse`` among others.
    """
    hidden, width = weights.up_weight.shape
    rows = mid.numel() // width
    tiles = triton.cdiv(rows, _ROWS)
    programs = fewest_programs(tiles, processors(mid.device))
    descriptors = has_descriptors(mid)
    down, out = weights.down_weight.contiguous(), weights.out_weight.contiguous()
    matrices = size(up, down, out)
    grad_mid, grad_attended = torch.empty_like(mid), torch.empty_like(mid)
    grad_maps = mid.new_empty(programs, 2, width, hidden, dtype=torch.float32)
    grad_out = mid.new_empty(programs, width, width, dtype=torch.float32)
    grad_bias = mid.new_empty(programs, 2, width, dtype=torch.float32)

    def described_rows(tensor: Tensor) -> Any:
        return described(tensor, _ROWS, width, descriptors)

    def cost() -> Cost:
        moved = size(grad_y, mid, attended, grad_mid, grad_attended, grad_maps, grad_out, grad_bias)
        moved += size(*(t for t in (lse, statistics) if t is not None))
        flop = 2 * rows * width * (5 * hidden + 2 * width)
        l2 = moved + programs * matrices
        return Cost((tiles / max(programs, 1),), flop, l2_bytes=l2, dram_bytes=moved + matrices)

    launch(
        narrow_feed_forward_gradient_kernel,
        programs,
        cost,
        num_warps=8,
        num_stages=1,
        p_grad_y=described_rows(grad_y),
        p_mid=described_rows(mid),
        p_up_weight=described(up, hidden, width, descriptors),
        p_down_weight=described(down, width, hidden, descriptors),
        p_out_weight=described(out, width, width, descriptors),
        p_attended=described_rows(attended),
        p_lse=grad_bias if lse is None else lse,
        p_statistics=grad_bias if statistics is None else statistics,
        p_grad_mid=described_rows(grad_mid),
        p_grad_attended=described_rows(grad_attended),
        p_grad_maps=described(grad_maps, width, hidden, descriptors),
        p_grad_out=described(grad_out, width, width, descriptors),
        p_grad_bias=grad_bias,
        rows=rows,
        tiles=tiles,
        frames=mid.shape[1],
        bands=mid.shape[2],
        padded=0 if statistics is None else statistics.shape[2],
        C=width,
        N=hidden,
        EPS=EPS,
        LEVEL=LEVEL,
        M=_ROWS,
        H=heads,
        TIME=axis == "time",
        STATISTICS=statistics is not None,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(mid),
    )
    grad_up, grad_down = grad_maps.sum(0)
    down_bias, out_bias = grad_bias.sum(0)
    norm_weight, norm_bias, up_weight, up_bias = launch_unfold(
        grad_up.T, weights.up_weight, weights.norm2_weight, weights.norm2_bias
    )
    found = {
        "out_weight": grad_out.sum(0),
        "out_bias": out_bias.clone(),  # an operator gives no views
        "norm2_weight": norm_weight,
        "norm2_bias": norm_bias,
        "up_weight": up_weight,
        "up_bias": up_bias,
        "down_weight": grad_down.clone(),
        "down_bias": down_bias.clone(),
    }
    return NarrowFeedForwardGradient(grad_mid, grad_attended, found)
