"""Norms folded into the matrices behind them, for the gradient of a narrow layer.

Rows are standardised and lifted by ``LEVEL``; the matrix holds the weight and the bias of the norm, and its own bias
(``AxisLayerWeights.folded``). Nothing is lost by it: standardised rows sum to zero, so that the mean of a row of the
gradient is ``LEVEL`` times that of the bias, and what is left of the gradient of the matrix leads to that of the norm
(``unfold_kernel``). No program adds up rows for these three.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, launch, size
from fastenh_kernels.shared.norm import row_of
from fastenh_kernels.shared.rounding import rounded

_ROWS = 4  # of a program that folds
_CHANNELS = 2  # of a program that unfolds


@triton.jit
def _fold(p_weight, p_bias, p_norm_weight, p_norm_bias, p_folded, first, C: tl.constexpr, LEVEL: tl.constexpr,
          M: tl.constexpr):  # fmt: skip
    o_c = tl.arange(0, C)
    o_n = first + tl.arange(0, M)
    o_w = o_n[:, None] * C + o_c[None, :]
    b_w = tl.load(p_weight + o_w).to(tl.float32)
    b_bias = tl.load(p_bias + o_n).to(tl.float32) + tl.sum(b_w * row_of(p_norm_bias, o_c), 1)
    b_w *= row_of(p_norm_weight, o_c)
    b_w += ((b_bias / LEVEL - tl.sum(b_w, 1)) / C)[:, None]
    tl.store(p_folded + o_w, b_w.to(p_folded.dtype.element_ty))


@triton.jit
def fold_kernel(
    p_qkv_weight,  # (3C, C)
    p_qkv_bias,  # (3C,)
    p_norm1_weight,  # (C,)
    p_norm1_bias,  # (C,)
    p_up_weight,  # (N, C)
    p_up_bias,  # (N,)
    p_norm2_weight,  # (C,)
    p_norm2_bias,  # (C,)
    p_qkv,  # (3C, C), written
    p_up,  # (N, C), written
    C: tl.constexpr,
    LEVEL: tl.constexpr,
    M: tl.constexpr,
):
    first = tl.program_id(0) * M
    if first < 3 * C:
        _fold(p_qkv_weight, p_qkv_bias, p_norm1_weight, p_norm1_bias, p_qkv, first, C, LEVEL, M)
    else:
        _fold(p_up_weight, p_up_bias, p_norm2_weight, p_norm2_bias, p_up, first - 3 * C, C, LEVEL, M)


def launch_fold(weights: AxisLayerWeights) -> tuple[Tensor, Tensor]:
    """QKV (3C, C) and up matrix (N, C), each with the norm in front of it and its bias folded in."""
    qkv, up = (weight.new_empty(weight.shape) for weight in (weights.qkv_weight, weights.up_weight))
    moved = 2 * size(qkv, up)
    launch(
        fold_kernel,
        (qkv.shape[0] + up.shape[0]) // _ROWS,
        lambda: Cost((), flop=0, l2_bytes=moved, dram_bytes=moved),
        num_warps=1,
        p_qkv_weight=weights.qkv_weight.contiguous(),
        p_qkv_bias=weights.qkv_bias,
        p_norm1_weight=weights.norm1_weight,
        p_norm1_bias=weights.norm1_bias,
        p_up_weight=weights.up_weight.contiguous(),
        p_up_bias=weights.up_bias,
        p_norm2_weight=weights.norm2_weight,
        p_norm2_bias=weights.norm2_bias,
        p_qkv=qkv,
        p_up=up,
        C=qkv.shape[1],
        LEVEL=LEVEL,
        M=_ROWS,
    )
    return qkv, up


@triton.jit
def unfold_kernel(
    p_grad,  # (N, C) by its strides: gradient of a folded matrix
    along_n,
    along_c,
    p_mean,  # (N,): its means over the channels
    p_weight,  # (N, C)
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_of_norm_weight,  # (C,), written
    p_of_norm_bias,  # (C,), written
    p_of_weight,  # (N, C), written
    p_of_bias,  # (N,), written
    C: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,  # N or more, a power of 2
    LEVEL: tl.constexpr,
    M: tl.constexpr,
):
    o_c, o_n = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, ROWS)
    o_w, m_n = o_n[:, None] * C + o_c[None, :], o_n < N
    m_w = m_n[:, None]
    b_grad = tl.load(p_grad + o_n[:, None] * along_n + o_c[None, :] * along_c, mask=m_w, other=0.0)  # [ROWS, M]
    b_w = tl.load(p_weight + o_w, mask=m_w, other=0.0).to(tl.float32)
    b_mean = tl.load(p_mean + o_n, mask=m_n, other=0.0)
    b_grad -= b_mean[:, None]  # of the matrix behind standardised rows
    b_bias = b_mean / LEVEL
    b_of_w = b_bias[:, None] * row_of(p_norm_bias, o_c) + b_grad * row_of(p_norm_weight, o_c)
    tl.store(p_of_weight + o_w, b_of_w, mask=m_w)
    tl.store(p_of_norm_weight + o_c, tl.sum(b_grad * b_w, 0))
    tl.store(p_of_norm_bias + o_c, tl.sum(b_bias[:, None] * b_w, 0))
    if tl.program_id(0) == 0:
        tl.store(p_of_bias + o_n, b_bias, mask=m_n)


def launch_unfold(
    grad: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the norm's weight and bias, of the matrix and of its bias, from that of the folded matrix.

    grad: (N, C), float32.
    """
    rows, width = weight.shape
    mean = grad.mean(1)
    of_norm_weight, of_norm_bias = mean.new_empty(width), mean.new_empty(width)
    of_weight, of_bias = mean.new_empty(rows, width), torch.empty_like(mean)
    moved = size(grad, weight, of_weight)
    launch(
        unfold_kernel,
        width // _CHANNELS,
        lambda: Cost((), flop=0, l2_bytes=moved, dram_bytes=moved),
        num_warps=1,
        p_grad=grad,
        along_n=grad.stride(0),
        along_c=grad.stride(1),
        p_mean=mean,
        p_weight=weight.contiguous(),
        p_norm_weight=norm_weight,
        p_norm_bias=norm_bias,
        p_of_norm_weight=of_norm_weight,
        p_of_norm_bias=of_norm_bias,
        p_of_weight=of_weight,
        p_of_bias=of_bias,
        C=width,
        N=rows,
        ROWS=triton.next_power_of_2(rows),
        LEVEL=LEVEL,
        M=_CHANNELS,
    )
    return of_norm_weight, of_norm_bias, of_weight, of_bias


@triton.jit
def standard(b_x, LEVEL: tl.constexpr, C: tl.constexpr, EPS: tl.constexpr, dtype: tl.constexpr):
    """[M, C] float32 rows with mean LEVEL and deviation 1 in ``dtype``, and the [M] factors that made them so. Squares
    are summed before the mean is known, as in ``narrow.standard``."""
    b_mean = tl.sum(b_x, 1) / C
    b_inverse = tl.rsqrt(tl.maximum(tl.sum(b_x * b_x, 1) / C - b_mean * b_mean, 0.0) + EPS)
    return rounded(b_x * b_inverse[:, None] + (LEVEL - b_mean * b_inverse)[:, None], dtype), b_inverse


@triton.jit
def through_standard(b_dn, b_n, b_inverse, b_besides, LEVEL: tl.constexpr, C: tl.constexpr):
    """The gradient of the rows that ``standard`` took to b_n, from that of b_n, and what comes back besides: [M, C]."""
    b_n = b_n.to(tl.float32)
    b_sum = tl.sum(b_dn, 1)
    b_slope = b_inverse * (LEVEL * b_sum - tl.sum(b_dn * b_n, 1)) / C
    b_level = b_inverse * b_sum / C + LEVEL * b_slope
    b_besides = b_besides.to(tl.float32) - b_level[:, None]
    return b_dn * b_inverse[:, None] + (b_n * b_slope[:, None] + b_besides)


@triton.jit
def through_matrix(b_g, b_w, b_n, b_dn, b_grad, PRECISION: tl.constexpr):
    """Rows [M, C] that come back from a matrix [C, C]: what they add to the gradients of its rows b_n [M, C] and of the
    matrix."""
    b_dn = tl.dot(b_g, b_w, b_dn, input_precision=PRECISION)
    return b_dn, tl.dot(tl.trans(b_g), b_n, b_grad, input_precision=PRECISION)
