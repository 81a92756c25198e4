"""The pre-LN encoder layer along one axis: LN, QKV and attention in one launch or two, and the rest in one.

Short sequences that fill blocks of 64 take ``norm_attention``; others LN + QKV and then ``axis_attention``. The rest is
the output projection, the residual, LN, both feed-forward maps and the second residual, a tile of rows at a time: the
hidden units (four times as wide as the activation) never leave the chip. Programs stay on the device and take tile
after tile, so that LN + QKV reads its weights once a program, not once a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastenh_kernels.axis_attention import axis_attention
from fastenh_kernels.dropout import FEED_FORWARD, HIDDEN_UNITS, PROJECTION, drop, seed_of
from fastenh_kernels.launch import Cost, capability, dot_precision, launch, processors, size
from fastenh_kernels.norm_attention import norm_attention, normalise, row_of, serves

EPS = 1e-5  # of the layer norms


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def norm_linear_kernel(
    p_x,  # (rows, C)
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (3C, C)
    p_bias,  # (3C,)
    p_out,  # (rows, 3C)
    rows,
    tiles,
    programs,
    C: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_column = tl.program_id(0) % (C // N)
    o_c = tl.arange(0, C)
    o_n = i_column * N + tl.arange(0, N)
    b_norm_weight, b_norm_bias = row_of(p_norm_weight, o_c), row_of(p_norm_bias, o_c)
    b_wq = tl.load(p_weight + o_n[:, None] * C + o_c[None, :])  # [N, C]
    b_wk = tl.load(p_weight + (C + o_n)[:, None] * C + o_c[None, :])
    b_wv = tl.load(p_weight + (2 * C + o_n)[:, None] * C + o_c[None, :])
    b_bq, b_bk, b_bv = row_of(p_bias, o_n), row_of(p_bias, C + o_n), row_of(p_bias, 2 * C + o_n)
    o_m = tl.arange(0, M)
    for tile in tl.range((tl.program_id(0) // (C // N)).to(tl.int64), tiles, programs):
        m_m = o_m[:, None] < rows - tile * M
        p_rows = p_x + tile * (M * C)
        b_x = tl.load(p_rows + o_m[:, None] * C + o_c[None, :], mask=m_m, other=0.0).to(tl.float32)  # [M, C]
        b_x = normalise(b_x, b_norm_weight, b_norm_bias, C, EPS).to(p_weight.dtype.element_ty)
        p_y = p_out + tile * (M * 3 * C) + o_m[:, None] * (3 * C) + o_n[None, :]
        b_y = tl.dot(b_x, tl.trans(b_wq), input_precision=PRECISION) + b_bq
        tl.store(p_y, b_y.to(p_out.dtype.element_ty), mask=m_m)
        b_y = tl.dot(b_x, tl.trans(b_wk), input_precision=PRECISION) + b_bk
        tl.store(p_y + C, b_y.to(p_out.dtype.element_ty), mask=m_m)
        b_y = tl.dot(b_x, tl.trans(b_wv), input_precision=PRECISION) + b_bv
        tl.store(p_y + 2 * C, b_y.to(p_out.dtype.element_ty), mask=m_m)


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
    p_y,  # (rows, C)
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
    KEEP: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, K)
    o_n = tl.arange(0, N)
    o_m = tl.arange(0, M)
    o_mc = o_m[:, None] * C + o_c[None, :]
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, programs, num_stages=1):
        m_m = o_m[:, None] < rows - tile * M
        o_tile = tile * (M * C)
        b_x = tl.load(p_x + o_tile + o_mc, mask=m_m, other=0.0).to(tl.float32)
        b_y = row_of(p_out_bias, o_c) + (b_x if DROPOUT == 0 else tl.zeros([M, C], tl.float32))
        for first in tl.range(0, C, K, num_stages=1):
            p_a = p_attended + o_tile + o_m[:, None] * C + (first + o_k)[None, :]
            b_a = tl.load(p_a, mask=m_m, other=0.0)  # [M, K]
            b_w = tl.load(p_out_weight + o_c[:, None] * C + (first + o_k)[None, :])  # [C, K]
            b_y = tl.dot(b_a, tl.trans(b_w), b_y, input_precision=PRECISION)
        if DROPOUT > 0:
            b_x += drop(b_y, seed_of(p_seed, PROJECTION, DROPOUT), o_tile + o_mc, DROPOUT)
        else:
            b_x = b_y  # the residual rides in the accumulator
        if KEEP:
            tl.store(p_mid + o_tile + o_mc, b_x.to(p_mid.dtype.element_ty), mask=m_m)
        b_n = normalise(b_x, row_of(p_norm_weight, o_c), row_of(p_norm_bias, o_c), C, EPS)
        b_n = b_n.to(p_out_weight.dtype.element_ty)
        b_y = row_of(p_down_bias, o_c) + (b_x if DROPOUT == 0 else tl.zeros([M, C], tl.float32))
        for first in tl.range(0, HIDDEN, N, num_stages=STAGES):
            b_up = load_weights(p_up_weight, o_n, o_c, first, 0, C, DESCRIPTORS)  # [N, C]
            b_h = tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION) + row_of(p_up_bias, first + o_n)
            b_h = tl.maximum(b_h, 0.0)
            if DROPOUT > 0:
                o_h = (tile * M + o_m)[:, None] * HIDDEN + (first + o_n)[None, :]
                b_h = drop(b_h, seed_of(p_seed, HIDDEN_UNITS, DROPOUT), o_h, DROPOUT)
            b_h = b_h.to(p_out_weight.dtype.element_ty)  # [M, N]
            b_down = load_weights(p_down_weight, o_c, o_n, 0, first, HIDDEN, DESCRIPTORS)  # [C, N]
            b_y = tl.dot(b_h, tl.trans(b_down), b_y, input_precision=PRECISION)
        if DROPOUT > 0:
            b_y = b_x + drop(b_y, seed_of(p_seed, FEED_FORWARD, DROPOUT), o_tile + o_mc, DROPOUT)
        tl.store(p_y + o_tile + o_mc, b_y.to(p_y.dtype.element_ty), mask=m_m)


def axis_layer(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    """See ``fastenh.ops.axis_layer``, without dropout. (B, T, F, C) -> (B, T, F, C).

    ``weights``: the tensors of ``AxisLayerWeights`` in order, matrices in the dtype of x. Raises ``ValueError`` unless
    the width is 64 or 128, and the hidden width a multiple of 64.
    """
    refuse_odd_widths(x, weights)
    norm_weight, norm_bias, qkv_weight, qkv_bias, *rest = weights
    x = x.contiguous()
    if serves(x, heads, axis):
        attended = norm_attention(x, norm_weight, norm_bias, qkv_weight, qkv_bias, heads, axis, EPS)
    else:
        attended = axis_attention(norm_linear(x, norm_weight, norm_bias, qkv_weight, qkv_bias), heads, axis)
    return project_feed_forward(attended, x, rest)


def refuse_odd_widths(x: Tensor, weights: Sequence[Tensor]) -> None:
    width, hidden = x.shape[-1], weights[8].shape[0]
    if width not in (64, 128) or hidden % 64:
        raise ValueError(f"width {width}, hidden {hidden}: the kernel takes 64 or 128, and multiples of 64")


def norm_linear(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LN and the packed projections. Contiguous (B, T, F, C) -> (B, T, F, 3C)."""
    width = x.shape[-1]
    rows = x.numel() // width
    out = torch.empty(*x.shape[:3], 3 * width, dtype=x.dtype, device=x.device)
    m, n, warps = (64, width, 4 if capability(x.device) >= 90 else 8) if x.element_size() == 2 else (32, 16, 4)
    parts = width // n
    tiles = triton.cdiv(rows, m)
    programs = min(tiles, 2 * processors(x.device))  # two an SM: one computes while the other loads
    names = ("p_x", "p_norm_weight", "p_norm_bias", "p_weight", "p_bias", "p_out")
    arguments = dict(zip(names, (x, norm_weight, norm_bias, weight, bias, out), strict=True))
    arguments |= {"rows": rows, "tiles": tiles, "programs": programs, "C": width, "EPS": EPS, "M": m, "N": n}
    arguments["PRECISION"] = dot_precision(x)

    def cost() -> Cost:
        moved = parts * size(x) + size(out)
        flop = 2 * rows * weight.numel()
        l2 = moved + programs * size(weight)
        return Cost((tiles / max(programs, 1),), flop, l2_bytes=l2, dram_bytes=size(x, out, weight))

    launch(norm_linear_kernel, parts * programs, arguments, cost, num_warps=warps, num_stages=1)
    return out


def project_feed_forward(
    attended: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    mid: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Projection, residual, LN, feed-forward, residual. Contiguous (B, T, F, C) twice -> (B, T, F, C).

    ``mid`` receives the rows after the first residual: the feed-forward's gradient begins there.
    """
    out_weight, out_bias, norm_weight, norm_bias, up_weight, up_bias, down_weight, down_bias = weights
    width, hidden = x.shape[-1], up_weight.shape[0]
    rows = x.numel() // width
    y = torch.empty_like(x)
    descriptors = x.element_size() == 2 and capability(x.device) >= 90
    if descriptors:
        m, n, k, warps, stages = 32 if dropout else 128, 64, width, 8, 2
        up = TensorDescriptor.from_tensor(up_weight.contiguous(), [n, width])
        down = TensorDescriptor.from_tensor(down_weight.contiguous(), [width, n])
    else:
        m, n, k, warps, stages = (64, 64, width, 8, 2) if x.element_size() == 2 else (32, 32, 32, 8, 1)
        m = m // 2 if dropout else m
        up, down = up_weight.contiguous(), down_weight.contiguous()
    tiles = triton.cdiv(rows, m)
    programs = min(tiles, processors(x.device))
    names = ("p_attended", "p_x", "p_out_weight", "p_out_bias", "p_norm_weight", "p_norm_bias")
    names += ("p_up_weight", "p_up_bias", "p_down_weight", "p_down_bias", "p_y")
    tensors = (attended, x, out_weight.contiguous(), out_bias, norm_weight, norm_bias, up, up_bias, down, down_bias, y)
    arguments = dict(zip(names, tensors, strict=True))
    arguments |= {"rows": rows, "tiles": tiles, "programs": programs, "C": width, "HIDDEN": hidden, "EPS": EPS}
    arguments |= {"M": m, "N": n, "K": k, "STAGES": stages, "DESCRIPTORS": descriptors, "PRECISION": dot_precision(x)}
    arguments |= {"p_mid": y if mid is None else mid, "KEEP": mid is not None}
    arguments |= {"p_seed": y if seed is None else seed, "DROPOUT": dropout}

    def cost() -> Cost:  # the projection's matrix stays in the program where it is read whole
        moved, matrices = size(attended, x, y, *(() if mid is None else (mid,))), size(up_weight, down_weight)
        l2 = moved + tiles * matrices + (programs if k == width else tiles) * size(out_weight)
        flop = 2 * rows * (out_weight.numel() + up_weight.numel() + down_weight.numel())
        loops = (tiles / max(programs, 1), width // k, hidden // n)
        return Cost(loops, flop, l2_bytes=l2, dram_bytes=moved + matrices + size(out_weight))

    launch(project_feed_forward_kernel, programs, arguments, cost, num_warps=warps, num_stages=stages)
    return y
