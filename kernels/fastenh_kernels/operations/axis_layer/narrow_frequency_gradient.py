"""The gradient of a narrow layer's first half along F in one launch: norm, QKV and attention.

A program has whole sequences, four of 32 bands at a time. Queries, keys, values and weights of the attention are
computed again, for all heads of all sequences as a batch of small products, so that nothing of the attention is kept
but what the second half needs. The sums of the gradient of QKV stay in the registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.sequences import scale
from fastenh_kernels.operations.axis_layer.folding import launch_unfold, standard, through_matrix, through_standard
from fastenh_kernels.operations.axis_layer.narrow_frequency_training import by_head, side_by_side
from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, dot_precision, fewest_programs, launch, processors, size
from fastenh_kernels.shared.norm import EPS
from fastenh_kernels.shared.rounding import rounded
from fastenh_kernels.shared.rows import as_result, described, has_descriptors, load_rows, nothing, store_rows

_ROWS = 128


@triton.jit(do_not_specialize=["rows", "tiles"])
def narrow_frequency_gradient_kernel(
    p_grad_attended,  # the descriptor of (rows, C)
    p_x,  # the descriptor of (rows, C)
    p_grad_mid,  # the descriptor of (rows, C): what comes back past the layer's first half
    p_weight,  # the descriptor of (3C, C), folded
    p_grad_x,  # the descriptor of (rows, C), written
    p_grad_weight,  # the descriptor of (programs * 3C, C), written
    rows,
    tiles,
    C: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,  # bands of a sequence
    EPS: tl.constexpr,
    LEVEL: tl.constexpr,
    ROOT: tl.constexpr,  # 1 / sqrt(D)
    SCALE: tl.constexpr,  # the same times log2(e)
    M: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c, o_m = tl.arange(0, C), tl.arange(0, M)
    dtype: tl.constexpr = p_weight.dtype
    b_wq, b_wk, b_wv = p_weight.load([0, 0]), p_weight.load([C, 0]), p_weight.load([2 * C, 0])  # [C, C]
    b_grad_q, b_grad_k, b_grad_v = (
        tl.zeros([C, C], tl.float32),
        tl.zeros([C, C], tl.float32),
        tl.zeros([C, C], tl.float32),
    )
    b_nothing = nothing(M, C, dtype)
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, tl.num_programs(0), num_stages=1, disable_licm=True):
        b_x = load_rows(p_x, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_n, b_inverse = standard(as_result(b_x, b_nothing), LEVEL, C, EPS, dtype)
        b_q = by_head(rounded(tl.dot(b_n, tl.trans(b_wq), input_precision=PRECISION), dtype), L, H)  # [N, L, D]
        b_k = by_head(rounded(tl.dot(b_n, tl.trans(b_wk), input_precision=PRECISION), dtype), L, H)
        b_v = by_head(rounded(tl.dot(b_n, tl.trans(b_wv), input_precision=PRECISION), dtype), L, H)
        b_do = by_head(load_rows(p_grad_attended, o_m, o_c, tile, 0, rows, C, DESCRIPTORS), L, H)
        b_s = tl.dot(b_q, tl.trans(b_k, 0, 2, 1), input_precision=PRECISION)  # [N, L, L]
        b_p = tl.exp2(b_s * SCALE - (tl.max(b_s, 2) * SCALE)[:, :, None])
        b_p *= (1.0 / tl.sum(b_p, 2))[:, :, None]
        b_dp = tl.dot(b_do, tl.trans(b_v, 0, 2, 1), input_precision=PRECISION)
        b_ds = rounded(b_p * ROOT * (b_dp - tl.sum(b_p * b_dp, 2)[:, :, None]), dtype)
        b_dv = tl.dot(tl.trans(rounded(b_p, dtype), 0, 2, 1), b_do, input_precision=PRECISION)
        b_dn = tl.zeros([M, C], tl.float32)
        b_g = side_by_side(rounded(b_dv, dtype), M, C)
        b_dn, b_grad_v = through_matrix(b_g, b_wv, b_n, b_dn, b_grad_v, PRECISION)
        b_g = side_by_side(rounded(tl.dot(tl.trans(b_ds, 0, 2, 1), b_q, input_precision=PRECISION), dtype), M, C)
        b_dn, b_grad_k = through_matrix(b_g, b_wk, b_n, b_dn, b_grad_k, PRECISION)
        b_g = side_by_side(rounded(tl.dot(b_ds, b_k, input_precision=PRECISION), dtype), M, C)
        b_dn, b_grad_q = through_matrix(b_g, b_wq, b_n, b_dn, b_grad_q, PRECISION)
        b_besides = load_rows(p_grad_mid, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_dx = rounded(through_standard(b_dn, b_n, b_inverse, b_besides, LEVEL, C), dtype)
        store_rows(p_grad_x, b_dx, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
    first = tl.program_id(0) * (3 * C)
    p_grad_weight.store([first, 0], b_grad_q)
    p_grad_weight.store([first + C, 0], b_grad_k)
    p_grad_weight.store([first + 2 * C, 0], b_grad_v)


def launch_narrow_frequency_gradient(
    grad_attended: Tensor, x: Tensor, grad_mid: Tensor, qkv: Tensor, weights: AxisLayerWeights, heads: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of x, and those of the norm and QKV in float32, by their names in ``AxisLayerWeights``.

    qkv: the matrix as ``launch_fold`` gives it.
    """
    bands, width = x.shape[2:]
    rows = x.numel() // width
    tiles = triton.cdiv(rows, _ROWS)
    programs = fewest_programs(tiles, processors(x.device))
    descriptors = has_descriptors(x)
    grad_x = torch.empty_like(x)
    grad_weight = x.new_empty(programs, 3 * width, width, dtype=torch.float32)

    def described_rows(tensor: Tensor) -> Any:
        return described(tensor, _ROWS, width, descriptors)

    def cost() -> Cost:
        moved = size(grad_attended, x, grad_mid, grad_x, grad_weight)
        l2 = moved + programs * size(qkv)
        flop = 6 * rows * qkv.numel() + 10 * x.numel() * bands
        return Cost((tiles / max(programs, 1),), flop, l2_bytes=l2, dram_bytes=moved + size(qkv))

    launch(
        narrow_frequency_gradient_kernel,
        programs,
        cost,
        num_warps=8,
        num_stages=1,
        p_grad_attended=described_rows(grad_attended),
        p_x=described_rows(x),
        p_grad_mid=described_rows(grad_mid),
        p_weight=described(qkv, width, width, descriptors),
        p_grad_x=described_rows(grad_x),
        p_grad_weight=described(grad_weight, width, width, descriptors),
        rows=rows,
        tiles=tiles,
        C=width,
        H=heads,
        L=bands,
        EPS=EPS,
        LEVEL=LEVEL,
        ROOT=(width // heads) ** -0.5,
        SCALE=scale(width // heads),
        M=_ROWS,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    found = launch_unfold(grad_weight.sum(0), weights.qkv_weight, weights.norm1_weight, weights.norm1_bias)
    return grad_x, dict(zip(("norm1_weight", "norm1_bias", "qkv_weight", "qkv_bias"), found, strict=True))
