"""The gradients of the two feed-forward matrices of ``axis_layer``.

The hidden units are computed again: four times as wide as a row, they never leave the chip here either.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.dropout import HIDDEN_UNITS, kept, row_draws
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, parts_of, size, warpgroups
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows


@triton.jit(do_not_specialize=["rows", "tiles", "parts"])
def feed_forward_weights_kernel(
    p_normed,  # (rows, C), or its descriptor
    p_grad_y,  # (rows, C), or its descriptor, dropout done
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
    DESCRIPTORS: tl.constexpr,
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
        b_n = load_rows(p_normed, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)  # [M, C]
        b_dy = load_rows(p_grad_y, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        # transposed from the start, hidden units x rows: they are first operands below
        b_h = tl.maximum(tl.dot(b_up, tl.trans(b_n), input_precision=PRECISION) + b_bias, 0.0)  # [N, M]
        if DROPOUT > 0:
            key, o_draw = row_draws(p_seed, HIDDEN_UNITS, tile * M, o_m, HIDDEN, DROPOUT)
            b_h = kept(b_h, key, o_draw[None, :], o_n[:, None], 8, DROPOUT)
        b_dh = tl.dot(tl.trans(b_down), tl.trans(b_dy), input_precision=PRECISION)
        b_dh = tl.where(b_h > 0.0, b_dh, 0.0)
        b_grad_bias += tl.sum(b_dh, 1)
        b_grad_down = tl.dot(b_h.to(b_dy.dtype), b_dy, b_grad_down, input_precision=PRECISION)
        b_grad_up = tl.dot(b_dh.to(b_n.dtype), b_n, b_grad_up, input_precision=PRECISION)
    o_part = (i_part * HIDDEN + o_n)[:, None] * C + o_c[None, :]
    LARGER: tl.constexpr = 1.0 / (1.0 - DROPOUT)  # what is kept
    tl.store(p_grad_up + o_part, b_grad_up * LARGER)
    tl.store(p_grad_down + o_part, b_grad_down * LARGER)
    tl.store(p_grad_bias + i_part * HIDDEN + o_n, b_grad_bias * LARGER)


def launch_feed_forward_weights(
    normed: Tensor, grad_y: Tensor, weights: AxisLayerWeights, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the up matrix (HIDDEN, C), of its bias, and of the down matrix (C, HIDDEN), in float32."""
    hidden, width = weights.up_weight.shape
    rows = normed.numel() // width
    if normed.element_size() == 4:
        m, n, warps, stages = 16, 16, 4, 1
    else:
        n = 128 if hidden % 128 == 0 and warpgroups(normed.device) else 64
        m, warps, stages = 64, 8, 2
    descriptors = has_descriptors(normed)
    tiles, blocks = triton.cdiv(rows, m), hidden // n
    parts = parts_of(tiles, blocks, normed.device, an_sm=1)
    grad_up, grad_down = (torch.empty(parts, hidden, width, dtype=torch.float32, device=normed.device) for _ in "ud")
    grad_bias = torch.empty(parts, hidden, dtype=torch.float32, device=normed.device)

    def cost() -> Cost:
        written = size(grad_up, grad_down)
        l2 = blocks * size(normed, grad_y) + parts * size(weights.up_weight, weights.down_weight) + written
        flop = 4 * 2 * rows * weights.up_weight.numel()
        return Cost((tiles / parts,), flop, l2_bytes=l2, dram_bytes=size(normed, grad_y) + written)

    launch(
        feed_forward_weights_kernel,
        parts * blocks,
        cost,
        num_warps=warps,
        num_stages=stages,
        p_normed=described(normed, m, width, descriptors),
        p_grad_y=described(grad_y, m, width, descriptors),
        p_up_weight=weights.up_weight.contiguous(),
        p_up_bias=weights.up_bias,
        p_down_weight=weights.down_weight.contiguous(),
        p_grad_up=grad_up,
        p_grad_down=grad_down,
        p_grad_bias=grad_bias,
        p_seed=grad_bias if seed is None else seed,
        rows=rows,
        tiles=tiles,
        parts=parts,
        C=width,
        HIDDEN=hidden,
        M=m,
        N=n,
        STAGES=stages,
        DESCRIPTORS=descriptors,
        DROPOUT=dropout,
        PRECISION=dot_precision(normed),
    )
    return grad_up.sum(0), grad_bias.sum(0), grad_down.sum(0).T.contiguous()
