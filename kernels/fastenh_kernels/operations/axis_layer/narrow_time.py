"""A narrow layer along T in one launch, for windows of the one length that is shipped.

A program takes a band of a clip, all of its frames: keys and values of both heads stay on the chip (64 KB) beside the
matrices (64 KB), so that its activations are read twice, the second time from a cache, and written once. Rows go
through in halves of the window: first all of them become keys and values, then each half is taken from its queries to
its result.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_layer import narrow
from fastenh_kernels.operations.axis_layer.narrow import (
    attention_weights,
    feed_forward,
    feed_forward_weights,
    keys_and_values,
    laid_as_result,
    plus_bias,
    queries,
    standard,
)
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, launch, processors, size

_ROWS, _BLOCKS = 128, 2  # of a block of frames; of a window


@triton.jit
def attend(b_q, keys, values, h, BLOCKS: tl.constexpr, PRECISION: tl.constexpr):
    """[M, D] float32: attention of [M, D] to all blocks of keys of a head."""
    b_s = tl.dot(b_q, tl.trans(keys[0][h]), input_precision=PRECISION)  # [M, M]
    b_max = tl.max(b_s, 1)
    b_p = tl.exp2(b_s - b_max[:, None])
    b_sum = tl.sum(b_p, 1)
    b_o = tl.dot(b_p.to(b_q.dtype), values[0][h], input_precision=PRECISION)
    for i in tl.static_range(1, BLOCKS):
        b_s = tl.dot(b_q, tl.trans(keys[i][h]), input_precision=PRECISION)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_shrink = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_o = tl.dot(b_p.to(b_q.dtype), values[i][h], b_o * b_shrink[:, None], input_precision=PRECISION)
        b_max = b_new
    return b_o * (1.0 / b_sum)[:, None]


@triton.jit(do_not_specialize=["sequences"])
def narrow_time_kernel(
    p_x,  # (B, BLOCKS * M, BANDS, C), contiguous
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
    p_y,  # as x
    sequences,  # B * BANDS
    BANDS: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    M: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    FRAME: tl.constexpr = BANDS * C
    dtype: tl.constexpr = p_x.dtype.element_ty
    heads, b_wkv, b_out_bias = attention_weights(
        p_norm1_weight, p_norm1_bias, p_qkv_weight, p_qkv_bias, p_out_weight, p_out_bias, C, H, SCALE, dtype
    )
    maps = feed_forward_weights(
        p_norm2_weight, p_norm2_bias, p_up_weight, p_up_bias, p_down_weight, p_down_bias, C, HIDDEN, dtype
    )
    o_x = tl.arange(0, M)[:, None] * FRAME + tl.arange(0, C)[None, :]
    # what does not change in the loops is mostly where a matrix lies: held in registers it would spill others
    for i in tl.range(tl.program_id(0).to(tl.int64), sequences, tl.num_programs(0), disable_licm=True):
        o_sequence = i // BANDS * (BLOCKS * M * FRAME) + i % BANDS * C
        keys, values = (), ()
        for j in tl.static_range(BLOCKS):
            b_frames = laid_as_result(tl.load(p_x + o_sequence + (o_x + j * M * FRAME)), M, C, PRECISION)
            b_standard = standard(b_frames, C, EPS, dtype)
            b_k, b_v = keys_and_values(b_standard, b_wkv, M, C // H, PRECISION)
            keys += (b_k,)
            values += (b_v,)
        for j in tl.range(0, BLOCKS, disable_licm=True):
            o_block = o_sequence + j * (M * FRAME)
            b_x = laid_as_result(tl.load(p_x + o_block + o_x), M, C, PRECISION)
            b_n = standard(b_x, C, EPS, dtype)
            b_x = plus_bias(b_x, b_out_bias, M, PRECISION)
            for h in tl.static_range(H):
                b_q = queries(b_n, heads[h], M, PRECISION)
                b_o = attend(b_q, keys, values, h, BLOCKS, PRECISION)
                b_x = tl.dot(b_o.to(dtype), tl.trans(heads[h][2]), b_x, input_precision=PRECISION)
            b_y = feed_forward(b_x, maps, M, C, EPS, PRECISION)
            tl.store(p_y + o_block + o_x, b_y.to(dtype))


def takes(x: Tensor, weights: AxisLayerWeights, heads: int, axis: str) -> bool:
    return axis == "time" and x.shape[1] == _BLOCKS * _ROWS and narrow.is_narrow(x, weights, heads)


def launch_narrow_time(x: Tensor, weights: AxisLayerWeights) -> Tensor:
    """The whole layer along T, without dropout. Contiguous (B, T, F, C) -> the same."""
    sequences = x.shape[0] * x.shape[2]
    programs = min(sequences, processors(x.device))  # one fills the registers of an SM
    y = torch.empty_like(x)

    def cost() -> Cost:
        loops = (sequences / max(programs, 1), _BLOCKS)
        once = narrow.layer_cost(x, weights, x.shape[1], programs, loops)
        return replace(once, l2_bytes=once.l2_bytes + size(x))  # the rows come twice

    launch(
        narrow_time_kernel,
        programs,
        cost,
        num_warps=8,
        num_stages=1,
        **narrow.layer_arguments(x, weights, y),
        sequences=sequences,
        BANDS=x.shape[2],
        M=_ROWS,
        BLOCKS=_BLOCKS,
    )
    return y
