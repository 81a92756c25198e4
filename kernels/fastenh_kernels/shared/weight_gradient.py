"""The gradient of a matrix from the rows that went in and the gradients that came back: A^T B over all rows.

Programs share the rows and keep a block of the sum each, in float32; what they found apart is added up at the end, so
that two identical steps give equal bits. The sums of A's columns, the gradient of a bias, come along.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import Cost, dot_precision, launch, parts_of, size
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows


@triton.jit(do_not_specialize=["rows", "tiles", "parts"])
def weight_gradient_kernel(
    p_grad,  # (rows, OUT), or its descriptor
    p_x,  # (rows, IN), or its descriptor
    p_weight,  # (parts, OUT, IN), float32
    p_bias,  # (parts, OUT), float32
    rows,
    tiles,
    parts,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    M: tl.constexpr,
    P: tl.constexpr,  # of OUT
    STAGES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_part = (tl.program_id(0) // (OUT // P)).to(tl.int64)
    first = tl.program_id(0) % (OUT // P) * P
    o_p = first + tl.arange(0, P)
    o_in = tl.arange(0, IN)
    o_m = tl.arange(0, M)
    b_weight = tl.zeros([P, IN], tl.float32)
    b_bias = tl.zeros([P], tl.float32)
    for tile in tl.range(i_part, tiles, parts, num_stages=STAGES):
        b_g = load_rows(p_grad, o_m, tl.arange(0, P), tile, first, rows, OUT, DESCRIPTORS)  # [M, P]
        b_x = load_rows(p_x, o_m, o_in, tile, 0, rows, IN, DESCRIPTORS)  # [M, IN]
        b_weight = tl.dot(tl.trans(b_g), b_x, b_weight, input_precision=PRECISION)
        b_bias += tl.sum(b_g.to(tl.float32), 0)
    tl.store(p_weight + (i_part * OUT + o_p)[:, None] * IN + o_in[None, :], b_weight)
    tl.store(p_bias + i_part * OUT + o_p, b_bias)


def launch_weight_gradient(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, OUT), (rows, IN), contiguous -> (OUT, IN) and (OUT,) in float32: of ``x @ weight.T + bias``.

    OUT a multiple of 64, IN 64 or 128.
    """
    (rows, out), width = grad.shape, x.shape[1]
    if x.element_size() == 4:
        m, p, warps, stages = 16, 64, 4, 1
    else:
        m, stages = 64, 3
        p, warps = (128, 8) if out > 128 and out % 128 == 0 else (64, 4)
    descriptors = has_descriptors(x)
    tiles, blocks = triton.cdiv(rows, m), out // p
    parts = parts_of(tiles, blocks, x.device, an_sm=1)
    weight = torch.empty(parts, out, width, dtype=torch.float32, device=x.device)
    bias = torch.empty(parts, out, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        l2 = size(grad) + blocks * size(x) + size(weight)
        return Cost((tiles / parts,), 2 * rows * out * width, l2_bytes=l2, dram_bytes=size(grad, x, weight))

    launch(
        weight_gradient_kernel,
        parts * blocks,
        cost,
        num_warps=warps,
        num_stages=stages,
        p_grad=described(grad, m, p, descriptors),
        p_x=described(x, m, width, descriptors),
        p_weight=weight,
        p_bias=bias,
        rows=rows,
        tiles=tiles,
        parts=parts,
        OUT=out,
        IN=width,
        M=m,
        P=p,
        STAGES=stages,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    return weight.sum(0), bias.sum(0)
