"""A narrow layer, of 64 channels and two heads, in one launch: its activations are read once and written once.

All of its matrices together take 64 KB, so they stay on the chip beside the rows: layer norm, QKV, attention, output
projection, residual, layer norm, feed-forward and residual follow each other without a way through memory. A program
takes blocks of whole sequences along F, one after the other, and keeps the matrices from block to block. What it has in
common with the layer along T (``time_layer``) is here, too:

- A matrix behind a layer norm holds the weight and the bias of the norm, and its own bias
  (``AxisLayerWeights.folded``).
- The other biases are added by a product with ones, as two 16-bit terms. The threads would otherwise load them for
  every block.
- Rows enter by a product with zeros. They are then where products leave their results, which is where the layer norm
  needs fewer exchanges, and where the next product takes them from registers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastenh_kernels.operations.axis_attention.sequences import scale
from fastenh_kernels.operations.axis_layer.weights import LEVEL, AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size, warpgroups
from fastenh_kernels.shared.norm import EPS
from fastenh_kernels.shared.rounding import relu
from fastenh_kernels.shared.rows import described, has_descriptors

WIDTH, HEADS, HIDDEN = 64, 2, 128  # channels of the layer, its heads, hidden units
_BANDS, _ROWS = 32, 64  # of a sequence, of a block
_TAKEN = "qkv_weight", "out_weight", "out_bias", "up_weight", "down_weight", "down_bias"


@triton.jit
def in_two(b_bias, dtype: tl.constexpr):
    """[N, 16]: float32 [N] as the sum of two 16-bit columns, the others zero."""
    o = tl.arange(0, 16)[None, :]
    b_high = b_bias.to(dtype)
    b_low = (b_bias - b_high.to(tl.float32)).to(dtype)
    return tl.where(o == 0, b_high[:, None], tl.where(o == 1, b_low[:, None], tl.zeros([1, 1], dtype)))


@triton.jit
def plus_bias(b_x, b_bias, M: tl.constexpr, PRECISION: tl.constexpr):
    """[M, N] float32 rows and a bias as ``in_two`` gives it."""
    return tl.dot(tl.full([M, 16], 1.0, b_bias.dtype), tl.trans(b_bias), b_x, input_precision=PRECISION)


@triton.jit
def laid_as_result(b_x, b_bias, M: tl.constexpr, PRECISION: tl.constexpr):
    """Rows [M, N] in float32, where a product leaves its results: that of zeros and any bias as of ``in_two``."""
    b_nothing = tl.zeros([M, 16], b_bias.dtype)
    return tl.dot(b_nothing, tl.trans(b_bias), b_x.to(tl.float32), input_precision=PRECISION)


@triton.jit
def standard(b_x, LEVEL: tl.constexpr, C: tl.constexpr, EPS: tl.constexpr, dtype: tl.constexpr):
    """[M, C] rows of mean LEVEL and deviation 1 in ``dtype``. Squares are summed before the mean is known: what the
    difference of two sums loses in float32 is less than what 16 bit lost of rows with so large a mean."""
    b_mean = tl.sum(b_x, 1) / C
    b_variance = tl.maximum(tl.sum(b_x * b_x, 1) / C - b_mean * b_mean, 0.0)
    b_inverse = tl.rsqrt(b_variance + EPS)
    return (b_x * b_inverse[:, None] + (LEVEL - b_mean * b_inverse)[:, None]).to(dtype)


@triton.jit
def attention_weights(
    p_qkv_weight, p_out_weight, p_out_bias, C: tl.constexpr, H: tl.constexpr, SCALE: tl.constexpr, dtype: tl.constexpr
):
    """For each head (queries [D, C], scaled, and output projection [C, D]); keys and values of all [2C, C]; the bias
    of the output projection."""
    D: tl.constexpr = C // H
    o_c = tl.arange(0, C)
    heads = ()
    for h in tl.static_range(H):
        o_d = h * D + tl.arange(0, D)
        b_wq = tl.load(p_qkv_weight + o_d[:, None] * C + o_c[None, :])
        b_out = tl.load(p_out_weight + o_c[:, None] * C + o_d[None, :])
        heads += (((b_wq.to(tl.float32) * SCALE).to(dtype), b_out),)
    b_wkv = tl.load(p_qkv_weight + (C + tl.arange(0, 2 * C))[:, None] * C + o_c[None, :])
    return heads, b_wkv, in_two(tl.load(p_out_bias + o_c).to(tl.float32), dtype)


@triton.jit
def feed_forward_weights(
    p_up_weight, p_down_weight, p_down_bias, C: tl.constexpr, HIDDEN: tl.constexpr, dtype: tl.constexpr
):
    """Up matrix [HIDDEN, C], down matrix [C, HIDDEN] and its bias."""
    o_c, o_h = tl.arange(0, C), tl.arange(0, HIDDEN)
    b_up = tl.load(p_up_weight + o_h[:, None] * C + o_c[None, :])
    b_down = tl.load(p_down_weight + o_c[:, None] * HIDDEN + o_h[None, :])
    return b_up, b_down, in_two(tl.load(p_down_bias + o_c).to(tl.float32), dtype)


@triton.jit
def queries(b_n, head, PRECISION: tl.constexpr):
    """[M, D] of a head as ``attention_weights`` gives it."""
    return tl.dot(b_n, tl.trans(head[0]), input_precision=PRECISION).to(b_n.dtype)


@triton.jit
def in_halves(b, M: tl.constexpr, N: tl.constexpr):
    """[M, N] twice of [M, 2N], in registers."""
    return tl.split(tl.permute(tl.reshape(b, (M, 2, N)), (0, 2, 1)))


@triton.jit
def keys_and_values(b_n, b_wkv, M: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr):
    """[M, D] of each of two heads: two keys, two values."""
    b_kv = tl.dot(b_n, tl.trans(b_wkv), input_precision=PRECISION).to(b_n.dtype)  # [M, 4D]
    b_k, b_v = in_halves(b_kv, M, 2 * D)
    return in_halves(b_k, M, D), in_halves(b_v, M, D)


@triton.jit
def feed_forward(
    b_x, weights, LEVEL: tl.constexpr, M: tl.constexpr, C: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr
):
    """Layer norm, both maps and the residual of float32 rows [M, C]."""
    b_up, b_down, b_down_bias = weights
    b_n = standard(b_x, LEVEL, C, EPS, b_up.dtype)
    b_h = relu(tl.dot(b_n, tl.trans(b_up), input_precision=PRECISION), b_up.dtype)  # [M, HIDDEN]
    b_x = plus_bias(b_x, b_down_bias, M, PRECISION)
    return tl.dot(b_h, tl.trans(b_down), b_x, input_precision=PRECISION)


@triton.jit
def attend_in_pairs(b_q, b_k, b_v, M: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr):
    """[M, D] float32: attention of rows to those of their half of the block. A product of full size, half of which is
    thrown away, is as fast as two smaller ones; but the exponentials are taken of one half alone."""
    L: tl.constexpr = M // 2
    m_first = (tl.arange(0, M) < L)[:, None]
    b_s0, b_s1 = in_halves(tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION), M, L)
    b_s = tl.where(m_first, b_s0, b_s1)  # [M, L]
    b_p = tl.exp2(b_s - tl.max(b_s, 1)[:, None])
    b_v = tl.reshape(tl.permute(tl.reshape(b_v, (2, L, D)), (1, 0, 2)), (L, 2 * D))  # both halves side by side
    b_o0, b_o1 = in_halves(tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION), M, D)
    return tl.where(m_first, b_o0, b_o1) * (1.0 / tl.sum(b_p, 1))[:, None]


@triton.jit(do_not_specialize=["tiles"])
def narrow_frequency_kernel(
    p_x,  # the descriptor of (rows, C), sequences of M / 2 rows one after the other
    p_qkv_weight,  # (3C, C), as the other weights folded
    p_out_weight,  # (C, C)
    p_out_bias,
    p_up_weight,  # (HIDDEN, C)
    p_down_weight,  # (C, HIDDEN)
    p_down_bias,
    p_y,  # the same
    tiles,
    C: tl.constexpr,
    H: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    LEVEL: tl.constexpr,  # that folded norms add
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    D: tl.constexpr = C // H
    dtype: tl.constexpr = p_qkv_weight.dtype.element_ty
    heads, b_wkv, b_out_bias = attention_weights(p_qkv_weight, p_out_weight, p_out_bias, C, H, SCALE, dtype)
    maps = feed_forward_weights(p_up_weight, p_down_weight, p_down_bias, C, HIDDEN, dtype)
    # what does not change in the loop is mostly where a matrix lies: held in registers it would spill others
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, tl.num_programs(0), disable_licm=True):
        b_x = laid_as_result(p_x.load([tl.cast(tile * M, tl.int32), 0]), b_out_bias, M, PRECISION)
        b_n = standard(b_x, LEVEL, C, EPS, dtype)
        b_x = plus_bias(b_x, b_out_bias, M, PRECISION)
        keys, values = keys_and_values(b_n, b_wkv, M, D, PRECISION)
        for h in tl.static_range(H):
            b_q = queries(b_n, heads[h], PRECISION)
            b_o = attend_in_pairs(b_q, keys[h], values[h], M, D, PRECISION)
            b_x = tl.dot(b_o.to(dtype), tl.trans(heads[h][1]), b_x, input_precision=PRECISION)
        b_y = feed_forward(b_x, maps, LEVEL, M, C, EPS, PRECISION)
        p_y.store([tl.cast(tile * M, tl.int32), 0], b_y.to(dtype))


def is_narrow(x: Tensor, weights: AxisLayerWeights, heads: int) -> bool:
    """Whether this is a layer of 16 bit for the kernels here and in ``time_layer``."""
    shape = x.shape[3], heads, weights.up_weight.shape[0]
    return x.element_size() == 2 and warpgroups(x.device) and shape == (WIDTH, HEADS, HIDDEN)


def takes(x: Tensor, weights: AxisLayerWeights, heads: int, axis: str) -> bool:
    return axis == "frequency" and x.shape[2] == _BANDS and is_narrow(x, weights, heads)


def launch_narrow(x: Tensor, weights: AxisLayerWeights) -> Tensor:
    """The whole layer along F, without dropout, of folded weights. Contiguous (B, T, F, C) -> the same."""
    tiles = triton.cdiv(x.numel() // WIDTH, _ROWS)
    programs = min(tiles, 2 * processors(x.device))  # as many as the registers of an SM allow
    y = torch.empty_like(x)
    rows_in, rows_out = (described(rows, _ROWS, WIDTH, has_descriptors(rows)) for rows in (x, y))
    launch(
        narrow_frequency_kernel,
        programs,
        lambda: layer_cost(x, weights, _BANDS, programs, (tiles / max(programs, 1),)),
        num_warps=4,
        num_stages=1,
        **layer_arguments(rows_in, rows_out, weights),
        tiles=tiles,
        M=_ROWS,
    )
    return y


def layer_arguments(
    x: Tensor | TensorDescriptor, y: Tensor | TensorDescriptor, weights: AxisLayerWeights
) -> dict[str, Any]:
    """What the kernels along both axes take."""
    named = {f"p_{name}": getattr(weights, name).contiguous() for name in _TAKEN}
    constants = {"C": WIDTH, "H": HEADS, "HIDDEN": HIDDEN, "EPS": EPS, "LEVEL": LEVEL, "SCALE": scale(WIDTH // HEADS)}
    return {"p_x": x, **named, "p_y": y, **constants, "PRECISION": dot_precision(weights.qkv_weight)}


def layer_cost(x: Tensor, weights: AxisLayerWeights, length: int, programs: int, loops: tuple[float, ...]) -> Cost:
    """Of a launch whose programs each load the matrices once."""
    matrices = size(*(tensor for tensor in weights if tensor.ndim == 2))
    flop = 2 * x.numel() * (4 * WIDTH + 2 * HIDDEN + 2 * length)
    return Cost(loops, flop, l2_bytes=2 * size(x) + programs * matrices, dram_bytes=2 * size(x) + matrices)
