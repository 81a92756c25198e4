"""The gradient of a narrow layer's norm and QKV in one launch: of its rows and of the matrix.

As in ``narrow_feed_forward_gradient`` the sums of the matrix's gradient stay in the registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_layer.folding import launch_unfold, standard, through_matrix, through_standard
from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, dot_precision, fewest_programs, launch, processors, size
from fastenh_kernels.shared.norm import EPS
from fastenh_kernels.shared.rounding import rounded
from fastenh_kernels.shared.rows import as_result, described, has_descriptors, load_rows, nothing, store_rows

_ROWS = 128


@triton.jit(do_not_specialize=["rows", "tiles"])
def narrow_norm_linear_gradient_kernel(
    p_grad_out,  # the descriptor of (rows, 3C)
    p_x,  # the descriptor of (rows, C)
    p_grad_mid,  # the descriptor of (rows, C): what comes back past the layer's first half
    p_weight,  # the descriptor of (3C, C), folded
    p_grad_x,  # the descriptor of (rows, C), written
    p_grad_weight,  # the descriptor of (programs * 3C, C), written
    rows,
    tiles,
    C: tl.constexpr,
    EPS: tl.constexpr,
    LEVEL: tl.constexpr,
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
        b_dn = tl.zeros([M, C], tl.float32)
        b_g = load_rows(p_grad_out, o_m, o_c, tile, 0, rows, 3 * C, DESCRIPTORS)  # [M, C]
        b_dn, b_grad_q = through_matrix(b_g, b_wq, b_n, b_dn, b_grad_q, PRECISION)
        b_g = load_rows(p_grad_out, o_m, o_c, tile, C, rows, 3 * C, DESCRIPTORS)
        b_dn, b_grad_k = through_matrix(b_g, b_wk, b_n, b_dn, b_grad_k, PRECISION)
        b_g = load_rows(p_grad_out, o_m, o_c, tile, 2 * C, rows, 3 * C, DESCRIPTORS)
        b_dn, b_grad_v = through_matrix(b_g, b_wv, b_n, b_dn, b_grad_v, PRECISION)
        b_besides = load_rows(p_grad_mid, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        b_dx = rounded(through_standard(b_dn, b_n, b_inverse, b_besides, LEVEL, C), dtype)
        store_rows(p_grad_x, b_dx, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
    first = tl.program_id(0) * (3 * C)
    p_grad_weight.store([first, 0], b_grad_q)
    p_grad_weight.store([first + C, 0], b_grad_k)
    p_grad_weight.store([first + 2 * C, 0], b_grad_v)


def launch_narrow_norm_linear_gradient(
    grad_out: Tensor, x: Tensor, grad_mid: Tensor, qkv: Tensor, weights: AxisLayerWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of x, and those of the norm and QKV in float32, by their names in ``AxisLayerWeights``.

    qkv: the matrix as ``launch_fold`` gives it.
    """
    width = x.shape[3]
    rows = x.numel() // width
    tiles = triton.cdiv(rows, _ROWS)
    programs = fewest_programs(tiles, processors(x.device))
    descriptors = has_descriptors(x)
    grad_x = torch.empty_like(x)
    grad_weight = x.new_empty(programs, 3 * width, width, dtype=torch.float32)

    def described_rows(tensor: Tensor) -> Any:
        return described(tensor, _ROWS, width, descriptors)

    def cost() -> Cost:
        moved = size(grad_out, x, grad_mid, grad_x, grad_weight)
        l2 = moved + programs * size(qkv)
        return Cost((tiles / max(programs, 1),), 4 * rows * qkv.numel(), l2_bytes=l2, dram_bytes=moved + size(qkv))

    launch(
        narrow_norm_linear_gradient_kernel,
        programs,
        cost,
        num_warps=8,
        num_stages=1,
        p_grad_out=described_rows(grad_out),
        p_x=described_rows(x),
        p_grad_mid=described_rows(grad_mid),
        p_weight=described(qkv, width, width, descriptors),
        p_grad_x=described_rows(grad_x),
        p_grad_weight=described(grad_weight, width, width, descriptors),
        rows=rows,
        tiles=tiles,
        C=width,
        EPS=EPS,
        LEVEL=LEVEL,
        M=_ROWS,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    found = launch_unfold(grad_weight.sum(0), weights.qkv_weight, weights.norm1_weight, weights.norm1_bias)
    return grad_x, dict(zip(("norm1_weight", "norm1_bias", "qkv_weight", "qkv_bias"), found, strict=True))
