"""A narrow layer along F in training, in one launch: as ``narrow``, and two kinds of rows are kept for the gradient.

These are the attended rows and those between the two halves; all else is computed again
(``narrow_frequency_gradient``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.sequences import scale
from fastenh_kernels.operations.axis_layer.folding import standard
from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size
from fastenh_kernels.shared.norm import EPS, row_of
from fastenh_kernels.shared.rounding import relu, rounded
from fastenh_kernels.shared.rows import as_result, described, has_descriptors, load_rows, nothing, store_rows

_ROWS = 64  # of half as many warps as 128 would have: few tiles are shared out more evenly


@triton.jit
def by_head(b, L: tl.constexpr, H: tl.constexpr):
    """[M, C] rows of whole sequences -> [M / L * H, L, D]."""
    M: tl.constexpr = b.shape[0]
    D: tl.constexpr = b.shape[1] // H
    return tl.reshape(tl.permute(tl.reshape(b, (M // L, L, H, D)), (0, 2, 1, 3)), (M // L * H, L, D))


@triton.jit
def side_by_side(b, M: tl.constexpr, C: tl.constexpr):
    """The other way."""
    L: tl.constexpr = b.shape[1]
    H: tl.constexpr = C // b.shape[2]
    return tl.reshape(tl.permute(tl.reshape(b, (M // L, H, L, b.shape[2])), (0, 2, 1, 3)), (M, C))


@triton.jit(do_not_specialize=["rows", "tiles"])
def narrow_frequency_training_kernel(
    p_x,  # the descriptor of (rows, C), sequences of L rows one after the other
    p_qkv_weight,  # the descriptor of (3C, C), folded
    p_out_weight,  # the descriptor of (C, C)
    p_out_bias,  # (C,)
    p_up_weight,  # the descriptor of (N, C), folded
    p_down_weight,  # the descriptor of (C, N)
    p_down_bias,  # (C,)
    p_attended,  # the descriptor of (rows, C), written
    p_mid,  # the descriptor of (rows, C), written
    p_y,  # the descriptor of (rows, C), written
    rows,
    tiles,
    C: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,  # hidden units
    L: tl.constexpr,  # bands of a sequence
    EPS: tl.constexpr,
    LEVEL: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    M: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c, o_m = tl.arange(0, C), tl.arange(0, M)
    dtype: tl.constexpr = p_out_weight.dtype
    b_wq, b_wk, b_wv = p_qkv_weight.load([0, 0]), p_qkv_weight.load([C, 0]), p_qkv_weight.load([2 * C, 0])  # [C, C]
    b_out, b_up, b_down = p_out_weight.load([0, 0]), p_up_weight.load([0, 0]), p_down_weight.load([0, 0])
    b_nothing = nothing(M, C, dtype)
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, tl.num_programs(0), num_stages=1, disable_licm=True):
        b_x = load_rows(p_x, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)  # [M, C]
        b_n, _ = standard(as_result(b_x, b_nothing), LEVEL, C, EPS, dtype)
        b_q = by_head(rounded(tl.dot(b_n, tl.trans(b_wq), input_precision=PRECISION), dtype), L, H)  # [M / L * H, L, D]
        b_k = by_head(rounded(tl.dot(b_n, tl.trans(b_wk), input_precision=PRECISION), dtype), L, H)
        b_v = by_head(rounded(tl.dot(b_n, tl.trans(b_wv), input_precision=PRECISION), dtype), L, H)
        b_s = tl.dot(b_q, tl.trans(b_k, 0, 2, 1), input_precision=PRECISION)
        b_p = tl.exp2(b_s * SCALE - (tl.max(b_s, 2) * SCALE)[:, :, None])
        b_a = tl.dot(rounded(b_p, dtype), b_v, input_precision=PRECISION) * (1.0 / tl.sum(b_p, 2))[:, :, None]
        b_a = side_by_side(rounded(b_a, dtype), M, C)
        store_rows(p_attended, b_a, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_x = b_x.to(tl.float32) + row_of(p_out_bias, o_c)
        b_x = tl.dot(b_a, tl.trans(b_out), b_x, input_precision=PRECISION)
        store_rows(p_mid, rounded(b_x, dtype), o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_n, _ = standard(b_x, LEVEL, C, EPS, dtype)
        b_h = relu(tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION), dtype)  # [M, N]
        b_x = tl.dot(b_h, tl.trans(b_down), b_x + row_of(p_down_bias, o_c), input_precision=PRECISION)
        store_rows(p_y, rounded(b_x, dtype), o_m, o_c, tile, 0, rows, C, DESCRIPTORS)


def launch_narrow_frequency_training(
    x: Tensor, qkv: Tensor, up: Tensor, weights: AxisLayerWeights, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(result, attended rows, rows between the two halves) without dropout. Contiguous (B, T, F, C) -> three times the
    same. qkv, up: the matrices as ``launch_fold`` gives them."""
    bands, width = x.shape[2:]
    hidden = weights.up_weight.shape[0]
    rows = x.numel() // width
    tiles = triton.cdiv(rows, _ROWS)
    programs = min(tiles, 2 * processors(x.device))  # two hide each other's waiting
    descriptors = has_descriptors(x)
    down, out = weights.down_weight.contiguous(), weights.out_weight.contiguous()
    y, attended, mid = (torch.empty_like(x) for _ in range(3))

    def cost() -> Cost:
        moved, matrices = size(x, y, attended, mid), size(qkv, out, up, down)
        flop = 2 * rows * (4 * width * width + 2 * width * hidden + 2 * width * bands)
        return Cost((tiles / max(programs, 1),), flop, moved + programs * matrices, moved + matrices)

    launch(
        narrow_frequency_training_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_x=described(x, _ROWS, width, descriptors),
        p_qkv_weight=described(qkv, width, width, descriptors),
        p_out_weight=described(out, width, width, descriptors),
        p_out_bias=weights.out_bias,
        p_up_weight=described(up, hidden, width, descriptors),
        p_down_weight=described(down, width, hidden, descriptors),
        p_down_bias=weights.down_bias,
        p_attended=described(attended, _ROWS, width, descriptors),
        p_mid=described(mid, _ROWS, width, descriptors),
        p_y=described(y, _ROWS, width, descriptors),
        rows=rows,
        tiles=tiles,
        C=width,
        H=heads,
        N=hidden,
        L=bands,
        EPS=EPS,
        LEVEL=LEVEL,
        SCALE=scale(width // heads),
        M=_ROWS,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    return y, attended, mid
