"""The pre-LN encoder layer along one axis, in three launches: LN + QKV, attention, and the rest.

The rest is the output projection, the residual, LN, both feed-forward maps and the second residual, a tile of rows at a
time: the hidden units (four times as wide as the activation) never leave the chip. A layer reads x twice, writes and
reads QKV and the attended values once, and writes y: the traffic of 11 activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.axis_attention import axis_attention
from fastenh_kernels.launch import dot_precision, launch

_EPS = 1e-5  # of the layer norms
# bytes of a value: (rows, columns of the weight at a time, warps, stages)
_QKV = {2: (128, 64, 8, 2), 4: (32, 64, 4, 1)}
# the same, with the share of the projection's inner dimension at a time behind the columns
_REST = {2: (64, 64, 128, 4, 2), 4: (32, 32, 32, 8, 1)}


@triton.jit
def _normalise(b_x, p_weight, p_bias, o_c, C: tl.constexpr, EPS: tl.constexpr):
    """Layer norm of [M, C] float32 rows (Ba et al. 2016)."""
    b_x = b_x - (tl.sum(b_x, 1) / C)[:, None]
    b_inverse = tl.rsqrt(tl.sum(b_x * b_x, 1) / C + EPS)
    b_weight = tl.load(p_weight + o_c).to(tl.float32)
    return b_x * b_inverse[:, None] * b_weight[None, :] + tl.load(p_bias + o_c).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["rows"])
def norm_linear_kernel(
    p_x,  # (rows, C)
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (OUT, C)
    p_bias,  # (OUT,)
    p_out,  # (rows, OUT)
    rows,
    C: tl.constexpr,
    OUT: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_m = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    o_c = tl.arange(0, C)
    m_m = o_m[:, None] < rows
    b_x = tl.load(p_x + o_m[:, None] * C + o_c[None, :], mask=m_m, other=0.0).to(tl.float32)  # [M, C]
    b_x = _normalise(b_x, p_norm_weight, p_norm_bias, o_c, C, EPS).to(p_weight.dtype.element_ty)
    for first in tl.range(0, OUT, N):
        o_n = first + tl.arange(0, N)
        b_w = tl.load(p_weight + o_n[:, None] * C + o_c[None, :])  # [N, C]
        b_y = tl.dot(b_x, tl.trans(b_w), input_precision=PRECISION) + tl.load(p_bias + o_n).to(tl.float32)[None, :]
        tl.store(p_out + o_m[:, None] * OUT + o_n[None, :], b_y.to(p_out.dtype.element_ty), mask=m_m)


@triton.jit(do_not_specialize=["rows"])
def project_feed_forward_kernel(
    p_attended,  # (rows, C)
    p_x,  # (rows, C)
    p_out_weight,  # (C, C)
    p_out_bias,  # (C,)
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_up_weight,  # (HIDDEN, C)
    p_up_bias,  # (HIDDEN,)
    p_down_weight,  # (C, HIDDEN)
    p_down_bias,  # (C,)
    p_y,  # (rows, C)
    rows,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_m = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    o_c = tl.arange(0, C)
    m_m = o_m[:, None] < rows
    o_mc = o_m[:, None] * C + o_c[None, :]
    b_x = tl.load(p_x + o_mc, mask=m_m, other=0.0).to(tl.float32) + tl.load(p_out_bias + o_c).to(tl.float32)[None, :]
    for first in tl.range(0, C, K):
        o_k = first + tl.arange(0, K)
        b_a = tl.load(p_attended + o_m[:, None] * C + o_k[None, :], mask=m_m, other=0.0)  # [M, K]
        b_w = tl.load(p_out_weight + o_c[:, None] * C + o_k[None, :])  # [C, K]
        b_x = tl.dot(b_a, tl.trans(b_w), b_x, input_precision=PRECISION)
    b_n = _normalise(b_x, p_norm_weight, p_norm_bias, o_c, C, EPS).to(p_up_weight.dtype.element_ty)
    b_y = b_x + tl.load(p_down_bias + o_c).to(tl.float32)[None, :]  # the residual rides in the accumulator
    for first in tl.range(0, HIDDEN, N):
        o_h = first + tl.arange(0, N)
        b_up = tl.load(p_up_weight + o_h[:, None] * C + o_c[None, :])  # [N, C]
        b_h = tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION) + tl.load(p_up_bias + o_h).to(tl.float32)[None, :]
        b_h = tl.maximum(b_h, 0.0).to(p_down_weight.dtype.element_ty)  # [M, N]
        b_down = tl.load(p_down_weight + o_c[:, None] * HIDDEN + o_h[None, :])  # [C, N]
        b_y = tl.dot(b_h, tl.trans(b_down), b_y, input_precision=PRECISION)
    tl.store(p_y + o_mc, b_y.to(p_y.dtype.element_ty), mask=m_m)


def axis_layer(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    """See ``fastenh.ops.axis_layer``, without dropout. (B, T, F, C) -> (B, T, F, C).

    ``weights``: the tensors of ``AxisLayerWeights`` in order, matrices in the dtype of x. Raises ``ValueError`` unless
    the width is 64 or 128, and the hidden width a multiple of 64.
    """
    norm1_weight, norm1_bias, qkv_weight, qkv_bias, out_weight, out_bias, *feed_forward = weights
    width, hidden = x.shape[-1], feed_forward[2].shape[0]
    if width not in (64, 128) or hidden % 64:
        raise ValueError(f"width {width}, hidden {hidden}: the kernel takes 64 or 128, and multiples of 64")
    x = x.contiguous()
    rows = x.numel() // width
    shared = {"rows": rows, "C": width, "EPS": _EPS, "PRECISION": dot_precision(x)}
    qkv = torch.empty(*x.shape[:3], 3 * width, dtype=x.dtype, device=x.device)
    names = ("p_x", "p_norm_weight", "p_norm_bias", "p_weight", "p_bias", "p_out")
    m, n, warps, stages = _QKV[x.element_size()]
    arguments = dict(zip(names, (x, norm1_weight, norm1_bias, qkv_weight, qkv_bias, qkv), strict=True))
    arguments |= {**shared, "OUT": 3 * width, "M": m, "N": n}
    launch(norm_linear_kernel, triton.cdiv(rows, m), arguments, num_warps=warps, num_stages=stages)
    attended = axis_attention(qkv, heads, axis)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    names = ("p_attended", "p_x", "p_out_weight", "p_out_bias", "p_norm_weight", "p_norm_bias")
    names += ("p_up_weight", "p_up_bias", "p_down_weight", "p_down_bias", "p_y")
    m, n, k, warps, stages = _REST[x.element_size()]
    arguments = dict(zip(names, (attended, x, out_weight, out_bias, *feed_forward, y), strict=True))
    arguments |= {**shared, "HIDDEN": hidden, "M": m, "N": n, "K": min(k, width)}
    launch(project_feed_forward_kernel, triton.cdiv(rows, m), arguments, num_warps=warps, num_stages=stages)
    return y
