"""The gradient of ``axis_layer``: of its input and of its twelve weights.

The forward pass keeps, beside its input and the packed projections, the attended rows, the softmax sums and the rows
between the two halves of the layer (``mid``). Hidden units and normalised rows are computed again: the hidden units,
four times as wide as a row, never leave the chip here either. Five launches and those of the attention:

    grad_y -> feed_forward_gradient: through the second half to mid, and through the projection to the attended rows
           -> feed_forward_weights: up and down matrices;   weight_gradient: output projection
           -> axis_attention_backward
           -> norm_linear_gradient: through QKV and the first norm to x;   weight_gradient: QKV

Sums over rows are left by tile or part and added up at the end, without atomics. Layer norm's gradient: Ba et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastenh_kernels.axis_attention import axis_attention_forward
from fastenh_kernels.axis_attention_backward import axis_attention_backward
from fastenh_kernels.axis_layer import EPS, load_weights, norm_linear, project_feed_forward, refuse_odd_widths
from fastenh_kernels.dropout import FEED_FORWARD, HIDDEN_UNITS, PROJECTION, drop, seed_of
from fastenh_kernels.launch import Cost, capability, dot_precision, launch, processors, size
from fastenh_kernels.norm_attention import row_of
from fastenh_kernels.weight_gradient import weight_gradient


@triton.jit
def _standardise(b_x, C: tl.constexpr, EPS: tl.constexpr):
    """[M, C] rows of mean 0 and deviation 1, and the [M] factors that made them so."""
    b_x = b_x - (tl.sum(b_x, 1) / C)[:, None]
    b_inverse = tl.rsqrt(tl.sum(b_x * b_x, 1) / C + EPS)
    return b_x * b_inverse[:, None], b_inverse


@triton.jit
def _through_norm(b_dn, b_standard, b_inverse, b_weight, C: tl.constexpr):
    """The gradient of a layer norm's input, from that of its output."""
    b_dn = b_dn * b_weight
    b_mean = tl.sum(b_dn, 1) / C
    b_slope = tl.sum(b_dn * b_standard, 1) / C
    return (b_dn - b_mean[:, None] - b_standard * b_slope[:, None]) * b_inverse[:, None]


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def feed_forward_gradient_kernel(
    p_grad_y,  # (rows, C)
    p_mid,  # (rows, C)
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_up_weight,  # (HIDDEN, C), or its descriptor
    p_up_bias,  # (HIDDEN,)
    p_down_weight,  # (C, HIDDEN), or its descriptor
    p_out_weight,  # (C, C)
    p_normed,  # (rows, C), written: the normalised rows of mid
    p_grad_mid,  # (rows, C), written
    p_grad_attended,  # (rows, C), written
    p_sums,  # (tiles, 2, C), written: of the gradients of norm weight and down bias
    p_dropped_y,  # (rows, C), written where DROPOUT: what is left of grad_y
    p_dropped_mid,  # (rows, C), written where DROPOUT: what is left of grad_mid on its way to the projection
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
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c = tl.arange(0, C)
    o_n = tl.arange(0, N)
    o_k = tl.arange(0, K)
    o_m = tl.arange(0, M)
    o_mc = o_m[:, None] * C + o_c[None, :]
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, programs, num_stages=1):
        m_m = o_m[:, None] < rows - tile * M
        o_tile = tile * (M * C)
        b_x = tl.load(p_mid + o_tile + o_mc, mask=m_m, other=0.0).to(tl.float32)
        b_x, b_inverse = _standardise(b_x, C, EPS)
        b_n = (b_x * row_of(p_norm_weight, o_c) + row_of(p_norm_bias, o_c)).to(p_out_weight.dtype.element_ty)
        tl.store(p_normed + o_tile + o_mc, b_n, mask=m_m)
        b_dy = tl.load(p_grad_y + o_tile + o_mc, mask=m_m, other=0.0)  # [M, C]
        if DROPOUT > 0:
            b_dy = drop(b_dy.to(tl.float32), seed_of(p_seed, FEED_FORWARD, DROPOUT), o_tile + o_mc, DROPOUT)
            b_dy = b_dy.to(p_dropped_y.dtype.element_ty)
            tl.store(p_dropped_y + o_tile + o_mc, b_dy, mask=m_m)
        b_dn = tl.zeros([M, C], tl.float32)
        for first in tl.range(0, HIDDEN, N, num_stages=STAGES):
            b_up = load_weights(p_up_weight, o_n, o_c, first, 0, C, DESCRIPTORS)  # [N, C]
            b_h = tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION) + row_of(p_up_bias, first + o_n)
            b_down = load_weights(p_down_weight, o_c, o_n, 0, first, HIDDEN, DESCRIPTORS)  # [C, N]
            b_dh = tl.dot(b_dy, b_down, input_precision=PRECISION)  # [M, N]
            if DROPOUT > 0:
                o_h = (tile * M + o_m)[:, None] * HIDDEN + (first + o_n)[None, :]
                b_dh = drop(b_dh, seed_of(p_seed, HIDDEN_UNITS, DROPOUT), o_h, DROPOUT)
            b_dh = tl.where(b_h > 0.0, b_dh, 0.0).to(b_dy.dtype)
            b_dn = tl.dot(b_dh, b_up, b_dn, input_precision=PRECISION)
        b_x = tl.load(p_mid + o_tile + o_mc, mask=m_m, other=0.0).to(tl.float32)  # again: registers are few
        b_x, b_inverse = _standardise(b_x, C, EPS)
        p_tile_sums = p_sums + tile * (2 * C) + o_c
        tl.store(p_tile_sums, tl.sum(b_dn * b_x, 0))
        b_dx = _through_norm(b_dn, b_x, b_inverse, row_of(p_norm_weight, o_c), C)
        if DROPOUT > 0:
            tl.store(p_tile_sums + C, tl.sum(b_dy.to(tl.float32), 0))
        b_dy = tl.load(p_grad_y + o_tile + o_mc, mask=m_m, other=0.0).to(tl.float32)
        if DROPOUT == 0:
            tl.store(p_tile_sums + C, tl.sum(b_dy, 0))
        b_dx = (b_dx + b_dy).to(p_out_weight.dtype.element_ty)
        tl.store(p_grad_mid + o_tile + o_mc, b_dx, mask=m_m)
        if DROPOUT > 0:
            b_dx = drop(b_dx.to(tl.float32), seed_of(p_seed, PROJECTION, DROPOUT), o_tile + o_mc, DROPOUT)
            b_dx = b_dx.to(p_out_weight.dtype.element_ty)
            tl.store(p_dropped_mid + o_tile + o_mc, b_dx, mask=m_m)
        for first in tl.range(0, C, K, num_stages=1):
            b_w = tl.load(p_out_weight + o_c[:, None] * C + (first + o_k)[None, :])  # [C, K]
            b_da = tl.dot(b_dx, b_w, input_precision=PRECISION)
            p_da = p_grad_attended + o_tile + o_m[:, None] * C + (first + o_k)[None, :]
            tl.store(p_da, b_da.to(p_grad_attended.dtype.element_ty), mask=m_m)


@triton.jit(do_not_specialize=["rows", "tiles", "parts"])
def feed_forward_weights_kernel(
    p_normed,  # (rows, C)
    p_grad_y,  # (rows, C), dropout done
    p_up_weight,  # (HIDDEN, C)
    p_up_bias,  # (HIDDEN,)
    p_down_weight,  # (C, HIDDEN)
    p_grad_up,  # (parts, HIDDEN, C), float32, written
    p_grad_down,  # (parts, HIDDEN, C), float32, written: transposed
    p_grad_bias,  # (parts, HIDDEN), float32, written: of up
    p_seed,  # (1,), of the dropout
    rows,
    tiles,
    parts,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,  # hidden units of a program
    STAGES: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_part = (tl.program_id(0) // (HIDDEN // N)).to(tl.int64)
    o_n = tl.program_id(0) % (HIDDEN // N) * N + tl.arange(0, N)
    o_c = tl.arange(0, C)
    o_m = tl.arange(0, M)
    b_up = tl.load(p_up_weight + o_n[:, None] * C + o_c[None, :])  # [N, C]
    b_down = tl.load(p_down_weight + o_c[:, None] * HIDDEN + o_n[None, :])  # [C, N]
    b_bias = tl.load(p_up_bias + o_n).to(tl.float32)[:, None]
    b_grad_up = tl.zeros([N, C], tl.float32)
    b_grad_down = tl.zeros([N, C], tl.float32)
    b_grad_bias = tl.zeros([N], tl.float32)
    for tile in tl.range(i_part, tiles, parts, num_stages=STAGES):
        m_m = o_m[:, None] < rows - tile * M
        o_tile = tile * (M * C) + o_m[:, None] * C + o_c[None, :]
        b_n = tl.load(p_normed + o_tile, mask=m_m, other=0.0)  # [M, C]
        b_dy = tl.load(p_grad_y + o_tile, mask=m_m, other=0.0)
        # transposed from the start, hidden units x rows: they are first operands below
        b_h = tl.maximum(tl.dot(b_up, tl.trans(b_n), input_precision=PRECISION) + b_bias, 0.0)  # [N, M]
        b_dh = tl.dot(tl.trans(b_down), tl.trans(b_dy), input_precision=PRECISION)
        b_dh = tl.where(b_h > 0.0, b_dh, 0.0)
        if DROPOUT > 0:
            seed = seed_of(p_seed, HIDDEN_UNITS, DROPOUT)
            o_h = (tile * M + o_m)[None, :] * HIDDEN + o_n[:, None]
            b_h, b_dh = drop(b_h, seed, o_h, DROPOUT), drop(b_dh, seed, o_h, DROPOUT)
        b_grad_bias += tl.sum(b_dh, 1)
        b_grad_down = tl.dot(b_h.to(b_dy.dtype), b_dy, b_grad_down, input_precision=PRECISION)
        b_grad_up = tl.dot(b_dh.to(b_n.dtype), b_n, b_grad_up, input_precision=PRECISION)
    o_part = (i_part * HIDDEN + o_n)[:, None] * C + o_c[None, :]
    tl.store(p_grad_up + o_part, b_grad_up)
    tl.store(p_grad_down + o_part, b_grad_down)
    tl.store(p_grad_bias + i_part * HIDDEN + o_n, b_grad_bias)


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def norm_linear_gradient_kernel(
    p_grad_out,  # (rows, 3C)
    p_x,  # (rows, C)
    p_grad_mid,  # (rows, C): what comes back past the layer's first half
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (3C, C)
    p_normed,  # (rows, C), written
    p_grad_x,  # (rows, C), written
    p_sums,  # (tiles, C), written: of the gradient of the norm's weight
    rows,
    tiles,
    programs,
    C: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, K)
    o_m = tl.arange(0, M)
    o_mc = o_m[:, None] * C + o_c[None, :]
    p_w = p_weight + o_c[:, None] * C + o_c[None, :]
    if K == C:  # the matrices stay
        b_wq, b_wk, b_wv = tl.load(p_w), tl.load(p_w + C * C), tl.load(p_w + 2 * C * C)  # [C, C]
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, programs):
        m_m = o_m[:, None] < rows - tile * M
        o_tile = tile * (M * C)
        p_g = p_grad_out + tile * (M * 3 * C) + o_m[:, None] * (3 * C) + o_k[None, :]
        b_x = tl.load(p_x + o_tile + o_mc, mask=m_m, other=0.0).to(tl.float32)
        b_x, b_inverse = _standardise(b_x, C, EPS)
        b_weight = row_of(p_norm_weight, o_c)
        b_n = (b_x * b_weight + row_of(p_norm_bias, o_c)).to(p_normed.dtype.element_ty)
        tl.store(p_normed + o_tile + o_mc, b_n, mask=m_m)
        if K == C:
            b_dn = tl.dot(tl.load(p_g, mask=m_m, other=0.0), b_wq, input_precision=PRECISION)  # [M, C]
            b_dn = tl.dot(tl.load(p_g + C, mask=m_m, other=0.0), b_wk, b_dn, input_precision=PRECISION)
            b_dn = tl.dot(tl.load(p_g + 2 * C, mask=m_m, other=0.0), b_wv, b_dn, input_precision=PRECISION)
        else:
            b_dn = tl.zeros([M, C], tl.float32)
            for first in tl.range(0, 3 * C, K):
                b_w = tl.load(p_weight + (first + o_k)[:, None] * C + o_c[None, :])  # [K, C]
                b_dn = tl.dot(tl.load(p_g + first, mask=m_m, other=0.0), b_w, b_dn, input_precision=PRECISION)
        tl.store(p_sums + tile * C + o_c, tl.sum(b_dn * b_x, 0))
        b_dx = tl.load(p_grad_mid + o_tile + o_mc, mask=m_m, other=0.0).to(tl.float32)
        b_dx += _through_norm(b_dn, b_x, b_inverse, b_weight, C)
        tl.store(p_grad_x + o_tile + o_mc, b_dx.to(p_grad_x.dtype.element_ty), mask=m_m)


def axis_layer_forward(
    x: Tensor,
    weights: Sequence[Tensor],
    heads: int,
    axis: str,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """``axis_layer`` with dropout, and what its gradient needs: [y, qkv, attended, softmax sums, mid].

    ``seed``: int64, one element, on the device. The same seed drops the same values.
    """
    refuse_odd_widths(x, weights)
    norm_weight, norm_bias, qkv_weight, qkv_bias, *rest = weights
    x = x.contiguous()
    qkv = norm_linear(x, norm_weight, norm_bias, qkv_weight, qkv_bias)
    attended, lse = axis_attention_forward(qkv, heads, axis, dropout, seed)
    mid = torch.empty_like(x)
    return [project_feed_forward(attended, x, rest, mid, dropout, seed), qkv, attended, lse, mid]


def axis_layer_backward(
    grad_y: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    heads: int,
    axis: str,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """[grad_x, and the gradients of the twelve weights in float32]. ``kept``: of ``axis_layer_forward``, without y."""
    qkv, attended, lse, mid = kept
    norm1_weight, norm1_bias, qkv_weight, _, out_weight, _, *feed_forward = weights
    width = x.shape[-1]
    x, grad_y = x.contiguous(), grad_y.contiguous()
    grad_mid, grad_attended, normed, sums, dropped_y, dropped_mid = _feed_forward_gradient(
        grad_y, mid, out_weight, feed_forward, dropout, seed
    )
    grad_up, grad_up_bias, grad_down = _feed_forward_weights(normed, dropped_y, feed_forward, dropout, seed)
    grad_out, grad_out_bias = weight_gradient(dropped_mid.view(-1, width), attended.view(-1, width))
    grad_qkv = axis_attention_backward(grad_attended, qkv, attended, lse, heads, axis, dropout, seed)
    grad_x, normed, norm_sums = _norm_linear_gradient(grad_qkv, x, grad_mid, norm1_weight, norm1_bias, qkv_weight)
    grad_qkv_weight, grad_qkv_bias = weight_gradient(grad_qkv.view(-1, 3 * width), normed.view(-1, width))
    grad_norm2, grad_down_bias = (row.clone() for row in sums.sum(0))  # an operator gives no views
    # A norm's bias reaches the rows behind it through a matrix alone, and so does that matrix's own bias.
    grad_norm1_bias, grad_norm2_bias = grad_qkv_bias @ qkv_weight.float(), grad_up_bias @ feed_forward[2].float()
    grads = [norm_sums.sum(0), grad_norm1_bias, grad_qkv_weight, grad_qkv_bias, grad_out, grad_out_bias]
    return [grad_x, *grads, grad_norm2, grad_norm2_bias, grad_up, grad_up_bias, grad_down, grad_down_bias]


def _feed_forward_gradient(
    grad_y: Tensor, mid: Tensor, out_weight: Tensor, weights: Sequence[Tensor], dropout: float, seed: Tensor | None
) -> tuple[Tensor, ...]:
    """(gradient of mid, of the attended rows, normalised rows of mid, (tiles, 2, C) sums; grad_y and the gradient of
    mid after dropout)."""
    norm_weight, norm_bias, up_weight, up_bias, down_weight, _ = weights
    hidden, width = up_weight.shape
    rows = mid.numel() // width
    descriptors = mid.element_size() == 2 and capability(mid.device) >= 90
    up, down = up_weight.contiguous(), down_weight.contiguous()
    if descriptors:
        m, n, k, warps, stages = 32 if dropout else 128, 64, width, 8, 2
        up, down = TensorDescriptor.from_tensor(up, [n, width]), TensorDescriptor.from_tensor(down, [width, n])
    else:
        m, n, k, warps, stages = (64, 32, width, 8, 2) if mid.element_size() == 2 else (16, 32, 32, 8, 1)
        m = min(m, 32) if dropout else m
    tiles = triton.cdiv(rows, m)
    programs = min(tiles, processors(mid.device))
    normed, grad_mid, grad_attended = (torch.empty_like(mid) for _ in range(3))
    dropped_y, dropped_mid = (torch.empty_like(mid) for _ in range(2)) if dropout else (grad_y, grad_mid)
    sums = torch.empty(tiles, 2, width, dtype=torch.float32, device=mid.device)
    names = ("p_grad_y", "p_mid", "p_norm_weight", "p_norm_bias", "p_up_weight", "p_up_bias", "p_down_weight")
    names += ("p_out_weight", "p_normed", "p_grad_mid", "p_grad_attended", "p_sums")
    tensors = (grad_y, mid, norm_weight, norm_bias, up, up_bias, down, out_weight.contiguous())
    arguments = dict(zip(names, (*tensors, normed, grad_mid, grad_attended, sums), strict=True))
    arguments |= {"p_dropped_y": dropped_y, "p_dropped_mid": dropped_mid}
    arguments |= {"p_seed": sums if seed is None else seed, "DROPOUT": dropout}
    arguments |= {"rows": rows, "tiles": tiles, "programs": programs, "C": width, "HIDDEN": hidden, "EPS": EPS}
    arguments |= {"M": m, "N": n, "K": k, "STAGES": stages, "DESCRIPTORS": descriptors, "PRECISION": dot_precision(mid)}

    def cost() -> Cost:  # rows are read twice, the second time from the caches
        moved, matrices = size(grad_y, mid, normed, grad_mid, grad_attended, sums), size(up_weight, down_weight)
        l2 = moved + size(grad_y, mid) + tiles * (matrices + size(out_weight))
        flop = 2 * rows * (3 * up_weight.numel() + out_weight.numel())
        loops = (tiles / max(programs, 1), hidden // n, width // k)
        return Cost(loops, flop, l2_bytes=l2, dram_bytes=moved + matrices)

    launch(feed_forward_gradient_kernel, programs, arguments, cost, num_warps=warps, num_stages=stages)
    return grad_mid, grad_attended, normed, sums, dropped_y, dropped_mid


def _feed_forward_weights(
    normed: Tensor, grad_y: Tensor, weights: Sequence[Tensor], dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the up matrix (HIDDEN, C), of its bias, and of the down matrix (C, HIDDEN), in float32."""
    up_weight, up_bias, down_weight = weights[2:5]
    hidden, width = up_weight.shape
    rows = normed.numel() // width
    if normed.element_size() == 4:
        m, n, warps, stages = 16, 16, 4, 1
    else:
        n = 128 if hidden % 128 == 0 and capability(normed.device) >= 90 else 64
        m, warps, stages = 64, 8, 2
    tiles, blocks = triton.cdiv(rows, m), hidden // n
    parts = max(1, min(tiles, 2 * processors(normed.device) // blocks))
    grad_up, grad_down = (torch.empty(parts, hidden, width, dtype=torch.float32, device=normed.device) for _ in "ud")
    grad_bias = torch.empty(parts, hidden, dtype=torch.float32, device=normed.device)
    names = ("p_normed", "p_grad_y", "p_up_weight", "p_up_bias", "p_down_weight")
    names += ("p_grad_up", "p_grad_down", "p_grad_bias", "rows", "tiles", "parts")
    tensors = (normed, grad_y, up_weight.contiguous(), up_bias, down_weight.contiguous())
    arguments = dict(zip(names, (*tensors, grad_up, grad_down, grad_bias, rows, tiles, parts), strict=True))
    arguments |= {"C": width, "HIDDEN": hidden, "M": m, "N": n, "STAGES": stages, "PRECISION": dot_precision(normed)}
    arguments |= {"p_seed": grad_bias if seed is None else seed, "DROPOUT": dropout}

    def cost() -> Cost:
        written = size(grad_up, grad_down)
        l2 = blocks * size(normed, grad_y) + parts * size(up_weight, down_weight) + written
        flop = 4 * 2 * rows * up_weight.numel()
        return Cost((tiles / parts,), flop, l2_bytes=l2, dram_bytes=size(normed, grad_y) + written)

    launch(feed_forward_weights_kernel, parts * blocks, arguments, cost, num_warps=warps, num_stages=stages)
    return grad_up.sum(0), grad_bias.sum(0), grad_down.sum(0).T.contiguous()


def _norm_linear_gradient(
    grad_out: Tensor, x: Tensor, grad_mid: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of x, normalised rows of x, (tiles, C) sums)."""
    width = x.shape[-1]
    rows = x.numel() // width
    m, k, warps = (64, width, 8) if x.element_size() == 2 else (16, 32, 8)
    tiles = triton.cdiv(rows, m)
    programs = min(tiles, 2 * processors(x.device))
    normed, grad_x = torch.empty_like(x), torch.empty_like(x)
    sums = torch.empty(tiles, width, dtype=torch.float32, device=x.device)
    names = ("p_grad_out", "p_x", "p_grad_mid", "p_norm_weight", "p_norm_bias", "p_weight", "p_normed", "p_grad_x")
    tensors = (grad_out, x, grad_mid, norm_weight, norm_bias, weight.contiguous(), normed, grad_x)
    arguments = dict(zip((*names, "p_sums"), (*tensors, sums), strict=True))
    arguments |= {"rows": rows, "tiles": tiles, "programs": programs, "C": width, "EPS": EPS, "M": m, "K": k}
    arguments["PRECISION"] = dot_precision(x)

    def cost() -> Cost:
        moved = size(grad_out, x, grad_mid, normed, grad_x, sums)
        flop = 2 * rows * weight.numel()
        l2 = moved + (programs if k == width else tiles) * size(weight)
        loops = (tiles / max(programs, 1), 3 * width // k)[: 1 if k == width else 2]
        return Cost(loops, flop, l2_bytes=l2, dram_bytes=moved + size(weight))

    launch(norm_linear_gradient_kernel, programs, arguments, cost, num_warps=warps, num_stages=1)
    return grad_x, normed, sums
