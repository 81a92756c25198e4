"""A narrow layer, of 64 channels, in one launch: its activations are read once and written once.

All of its matrices together take 64 KB, so they stay on the chip beside the rows: layer norm, QKV, attention, output
projection, residual, layer norm, feed-forward and residual follow each other without a way through memory. A program
takes blocks of whole sequences along F, one after the other, and keeps the matrices from block to block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.sequences import scale
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size, warpgroups
from fastenh_kernels.shared.norm import EPS, normalise, row_of

_WIDTH, _HEAD, _HIDDEN = 64, 32, 128  # channels of the layer and of a head, hidden units
_ROWS = 64  # of a block


@triton.jit
def head_matrices(p_weight, h, C: tl.constexpr, D: tl.constexpr):
    """Rows of the packed matrix for a head: [D, C] for its queries; [2D, C] for its keys, then its values."""
    o_c = tl.arange(0, C)
    o_kv = tl.arange(0, 2 * D)
    b_wq = tl.load(p_weight + (h * D + tl.arange(0, D))[:, None] * C + o_c[None, :])
    b_wkv = tl.load(p_weight + (C + o_kv // D * C + h * D + o_kv % D)[:, None] * C + o_c[None, :])
    return b_wq, b_wkv


@triton.jit
def keys_and_values(b_n, b_wkv, p_bias, h, M: tl.constexpr, C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr):
    """[M, D] twice, of normalised rows [M, C]: one product, split in registers."""
    o_kv = tl.arange(0, 2 * D)
    b_bias = row_of(p_bias, C + o_kv // D * C + h * D + o_kv % D)
    b_kv = tl.dot(b_n, tl.trans(b_wkv), input_precision=PRECISION) + b_bias
    return tl.split(tl.permute(tl.reshape(b_kv.to(b_n.dtype), (M, 2, D)), (0, 2, 1)))


@triton.jit
def feed_forward(
    b_x,
    b_up,
    b_down,
    p_norm_weight,
    p_norm_bias,
    p_up_bias,
    p_down_bias,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Layer norm, both maps and the residual of float32 rows [M, C]."""
    o_c = tl.arange(0, C)
    b_n = normalise(b_x, row_of(p_norm_weight, o_c), row_of(p_norm_bias, o_c), C, EPS).to(b_up.dtype)
    b_h = tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION) + row_of(p_up_bias, tl.arange(0, HIDDEN))
    b_h = tl.maximum(b_h, 0.0).to(b_up.dtype)  # [M, HIDDEN]
    return tl.dot(b_h, tl.trans(b_down), b_x + row_of(p_down_bias, o_c), input_precision=PRECISION)


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def narrow_frequency_kernel(
    p_x,  # (rows, C), sequences of L rows one after the other
    p_norm1_weight,
    p_norm1_bias,
    p_qkv_weight,  # (3C, C)
    p_qkv_bias,
    p_out_weight,  # (C, C)
    p_out_bias,
    p_norm2_weight,
    p_norm2_bias,
    p_up_weight,  # (HIDDEN, C)
    p_up_bias,
    p_down_weight,  # (C, HIDDEN)
    p_down_bias,
    p_y,  # (rows, C)
    rows,
    tiles,
    programs,
    L: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_m, o_c, o_d = tl.arange(0, M), tl.arange(0, C), tl.arange(0, D)
    together = (o_m // L)[:, None] == (o_m // L)[None, :]  # rows of one sequence
    queries, pairs, outs = (), (), ()
    for h in tl.static_range(H):
        b_wq, b_wkv = head_matrices(p_qkv_weight, h, C, D)
        queries += (b_wq,)
        pairs += (b_wkv,)
        outs += (tl.load(p_out_weight + o_c[:, None] * C + (h * D + o_d)[None, :]),)  # [C, D]
    b_up = tl.load(p_up_weight + tl.arange(0, HIDDEN)[:, None] * C + o_c[None, :])
    b_down = tl.load(p_down_weight + o_c[:, None] * HIDDEN + tl.arange(0, HIDDEN)[None, :])
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, programs):
        o_tile = tile * (M * C) + o_m[:, None] * C + o_c[None, :]
        m_m = o_m[:, None] < rows - tile * M
        b_x = tl.load(p_x + o_tile, mask=m_m, other=0.0).to(tl.float32)
        b_n = normalise(b_x, row_of(p_norm1_weight, o_c), row_of(p_norm1_bias, o_c), C, EPS)
        b_n = b_n.to(p_qkv_weight.dtype.element_ty)
        b_x += row_of(p_out_bias, o_c)
        for h in tl.static_range(H):
            b_q = tl.dot(b_n, tl.trans(queries[h]), input_precision=PRECISION) + row_of(p_qkv_bias, h * D + o_d)
            b_k, b_v = keys_and_values(b_n, pairs[h], p_qkv_bias, h, M, C, D, PRECISION)
            b_s = tl.dot((b_q * SCALE).to(b_n.dtype), tl.trans(b_k), input_precision=PRECISION)  # [M, M]
            b_s = tl.where(together, b_s, float("-inf"))
            b_p = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
            b_o = tl.dot(b_p.to(b_n.dtype), b_v, input_precision=PRECISION) * (1.0 / tl.sum(b_p, 1))[:, None]
            b_x = tl.dot(b_o.to(b_n.dtype), tl.trans(outs[h]), b_x, input_precision=PRECISION)
        b_y = feed_forward(
            b_x, b_up, b_down, p_norm2_weight, p_norm2_bias, p_up_bias, p_down_bias, C, HIDDEN, EPS, PRECISION
        )
        tl.store(p_y + o_tile, b_y.to(p_y.dtype.element_ty), mask=m_m)


def takes(x: Tensor, weights: AxisLayerWeights, heads: int, axis: str) -> bool:
    """Whether this is a narrow layer of 16 bit along F, of sequences that fill blocks."""
    length = x.shape[2]
    fits = axis == "frequency" and length >= 16 and _ROWS % length == 0 and x.element_size() == 2
    shape = x.shape[3], x.shape[3] // heads, weights.up_weight.shape[0]
    return fits and warpgroups(x.device) and shape == (_WIDTH, _HEAD, _HIDDEN)


def launch_narrow(x: Tensor, weights: AxisLayerWeights, heads: int) -> Tensor:
    """The whole layer along F, without dropout. Contiguous (B, T, F, C) -> the same."""
    rows = x.numel() // _WIDTH
    tiles = triton.cdiv(rows, _ROWS)
    programs = min(tiles, 2 * processors(x.device))  # as many as the registers of an SM allow
    y = torch.empty_like(x)

    def cost() -> Cost:
        matrices = size(*(tensor for tensor in weights if tensor.ndim == 2))
        flop = 2 * rows * (4 * _WIDTH**2 + 2 * _WIDTH * _HIDDEN + 2 * x.shape[2] * _WIDTH)
        return Cost((tiles / max(programs, 1),), flop, size(x, y) + programs * matrices, size(x, y) + matrices)

    launch(
        narrow_frequency_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_x=x,
        **{f"p_{name}": tensor.contiguous() for name, tensor in weights._asdict().items()},
        p_y=y,
        rows=rows,
        tiles=tiles,
        programs=programs,
        L=x.shape[2],
        C=_WIDTH,
        H=heads,
        D=_HEAD,
        HIDDEN=_HIDDEN,
        EPS=EPS,
        SCALE=scale(_HEAD),
        M=_ROWS,
        PRECISION=dot_precision(x),
    )
    return y
