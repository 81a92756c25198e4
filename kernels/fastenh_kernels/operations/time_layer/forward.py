"""A narrow layer along T with its taps in one launch, for windows of the one length that is shipped; else in several.

A program takes a band of a clip, all of its frames, so that the taps need no other program: it writes the rows behind
them to where its result goes, and takes them from there. Keys and values of both heads stay on the chip (64 KB) beside
the matrices (64 KB). Rows go through in halves of the window: first all of them become keys and values, then each half
is taken from its queries to its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_layer import narrow
from fastenh_kernels.operations.axis_layer.forward import launch_axis_layer
from fastenh_kernels.operations.axis_layer.narrow import (
    HEADS,
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
from fastenh_kernels.operations.norm_taps.forward import launch_norm_taps, tap_rows
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, launch, processors, size
from fastenh_kernels.shared.norm import row_of
from fastenh_kernels.shared.operators import like, operator

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
_ROWS, _BLOCKS = 128, 2  # of a block of frames; of a window
# float32 and bfloat16 reach to 2^127. At 2^-100 a row's weights are right to 2^-26 of the largest, and at 2^100 they
# leave room for values of 2^27.
_MOST = {torch.bfloat16: 2.0**100}
_TURN = 16  # frames of a window that a row of threads takes through the taps


@triton.jit
def through_taps(
    p_x, p_y, p_norm_weight, p_norm_bias, p_weight, p_bias,
    FRAMES: tl.constexpr, FRAME: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, AHEAD: tl.constexpr,
    TURN: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Writes ``norm_taps`` of a sequence and returns its frames, TURN times [FRAMES / TURN, C]: row m of the threads
    walks along TURN frames from m * TURN on."""
    BEFORE: tl.constexpr = TAPS - 1 - AHEAD
    dtype: tl.constexpr = p_y.dtype.element_ty
    o_c = tl.arange(0, C)
    o_t = tl.arange(0, FRAMES // TURN)[:, None] * TURN
    o_x = o_t * FRAME + o_c[None, :]
    b_norm_weight, b_norm_bias = row_of(p_norm_weight, o_c), row_of(p_norm_bias, o_c)
    taps, b_bias = tap_rows(p_weight, o_c, C, TAPS), row_of(p_bias, o_c)
    rows, seen, frames = (), (), ()  # as they are and normalised, from the first that the taps need on; the result
    for k in tl.static_range(TURN + TAPS - 1):
        m_t = (o_t >= BEFORE - k) & (o_t < FRAMES + BEFORE - k)
        b_x = tl.load(p_x + (o_x + (k - BEFORE) * FRAME), mask=m_t, other=0.0).to(tl.float32)
        b_n = standard(b_x, 0.0, C, EPS, tl.float32) * b_norm_weight + b_norm_bias
        if k < BEFORE or k >= BEFORE + TURN:
            b_n = tl.where(m_t, b_n, 0.0)
        rows += (b_x,)
        seen += (b_n,)
        if k >= TAPS - 1:
            b_y = rows[k - AHEAD] + b_bias
            for i in tl.static_range(TAPS):
                b_y += seen[k - TAPS + 1 + i] * taps[i]
            tl.store(p_y + (o_x + (k - TAPS + 1) * FRAME), b_y.to(dtype))
            frames += (b_y.to(dtype),)
    return frames


@triton.jit
def stacked(frames, first: tl.constexpr):
    """[8 R, C] of eight [R, C] from ``first`` on; their rows in turn."""
    b0 = tl.join(tl.join(frames[first], frames[first + 1]), tl.join(frames[first + 2], frames[first + 3]))
    b1 = tl.join(tl.join(frames[first + 4], frames[first + 5]), tl.join(frames[first + 6], frames[first + 7]))
    b = tl.permute(tl.join(b0, b1), (0, 2, 3, 4, 1))
    return tl.reshape(b, (8 * b.shape[0], b.shape[4]))


@triton.jit
def largest_scores(b_q, keys, h, BLOCKS: tl.constexpr, PRECISION: tl.constexpr):
    """[M] float32: of rows [M, D] with all blocks of keys of a head."""
    b_most = tl.max(tl.dot(b_q, tl.trans(keys[0][h]), input_precision=PRECISION), 1)
    for i in tl.static_range(1, BLOCKS):
        b_most = tl.maximum(b_most, tl.max(tl.dot(b_q, tl.trans(keys[i][h]), input_precision=PRECISION), 1))
    return b_most


@triton.jit
def weighted(b_q, keys, values, h, b_less, LESS: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr):
    """([M, D], [M]) float32: the values of a head times their weights, and the sums of the weights: powers of the
    scores, with LESS of the scores less ``b_less``."""
    b_o, b_sum = tl.zeros(b_q.shape, tl.float32), tl.zeros([b_q.shape[0]], tl.float32)
    for i in tl.static_range(BLOCKS):
        b_s = tl.dot(b_q, tl.trans(keys[i][h]), input_precision=PRECISION)  # [M, M]
        b_p = tl.exp2(b_s - b_less[:, None] if LESS else b_s)
        b_sum += tl.sum(b_p, 1)
        b_o = tl.dot(b_p.to(b_q.dtype), values[i][h], b_o, input_precision=PRECISION)
    return b_o, b_sum


@triton.jit
def out_of_range(b_sum, MOST: tl.constexpr):
    """Whether any sum of weights is larger than MOST or smaller than its inverse; NaN is neither."""
    return tl.max(tl.maximum(b_sum, 1.0 / b_sum), 0) > MOST


@triton.jit
def as_if_new(x):
    """x unchanged, a tile of 16 bit or a number of 32, but the compiler does not know that it is: it neither takes what
    is made of it out of a loop, nor keeps in registers what it has made of x before."""
    if INTERPRETED:
        y = x
    elif x.dtype == tl.int32:
        y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.int32, is_pure=False, pack=1)
    else:
        y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, is_pure=False, pack=2)
    return y


@triton.jit
def attend(b_q, keys, values, h, MOST: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr):
    """[M, D] float32: attention of [M, D] to all blocks of keys of a head.

    Whatever is taken off all scores of a row, the result is the same as long as weights and sums stay in the range of
    numbers. Where that is large, it is nothing at first, and the largest score if a sum then is beyond MOST.
    """
    if MOST > 0:
        b_o, b_sum = weighted(b_q, keys, values, h, 0.0, False, BLOCKS, PRECISION)
        while out_of_range(b_sum, MOST):
            b_q = as_if_new(b_q)
            b_most = largest_scores(b_q, keys, h, BLOCKS, PRECISION)
            b_o, b_sum = weighted(b_q, keys, values, h, b_most, True, BLOCKS, PRECISION)
    else:
        b_most = largest_scores(b_q, keys, h, BLOCKS, PRECISION)
        b_o, b_sum = weighted(b_q, keys, values, h, b_most, True, BLOCKS, PRECISION)
    return b_o * (1.0 / b_sum)[:, None]


@triton.jit(do_not_specialize=["sequences"])
def narrow_time_kernel(
    p_x,  # (B, BLOCKS * M, BANDS, C), contiguous
    p_taps_norm_weight,
    p_taps_norm_bias,
    p_taps,  # (C, TAPS)
    p_taps_bias,
    p_qkv_weight,  # (3C, C), as the other weights folded
    p_out_weight,  # (C, C)
    p_out_bias,
    p_up_weight,  # (HIDDEN, C)
    p_down_weight,  # (C, HIDDEN)
    p_down_bias,
    p_y,  # as x
    sequences,  # B * BANDS
    BANDS: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    HIDDEN: tl.constexpr,
    EPS: tl.constexpr,
    LEVEL: tl.constexpr,  # that folded norms add
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    MOST: tl.constexpr,  # that sums of powers of the scores may be, and its inverse the least; 0: not without a maximum
    M: tl.constexpr,
    BLOCKS: tl.constexpr,
    TAPS: tl.constexpr,
    AHEAD: tl.constexpr,
    TURN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    FRAME: tl.constexpr = BANDS * C
    dtype: tl.constexpr = p_x.dtype.element_ty
    heads, b_wkv, b_out_bias = attention_weights(p_qkv_weight, p_out_weight, p_out_bias, C, H, SCALE, dtype)
    maps = feed_forward_weights(p_up_weight, p_down_weight, p_down_bias, C, HIDDEN, dtype)
    o_x = tl.arange(0, M)[:, None] * FRAME + tl.arange(0, C)[None, :]
    # what does not change in the loops is mostly where a matrix lies: held in registers it would spill others
    for i in tl.range(tl.program_id(0).to(tl.int64), sequences, tl.num_programs(0), disable_licm=True):
        o_sequence = i // BANDS * (BLOCKS * M * FRAME) + i % BANDS * C
        frames = through_taps(
            p_x + o_sequence, p_y + o_sequence, p_taps_norm_weight, p_taps_norm_bias, p_taps, p_taps_bias,
            BLOCKS * M, FRAME, C, TAPS, AHEAD, TURN, EPS,
        )  # fmt: skip
        keys, values = (), ()
        for j in tl.static_range(BLOCKS):
            b_frames = laid_as_result(
                stacked(frames, 8 * j), b_out_bias, M, PRECISION
            )  # in any order: a softmax has none
            b_standard = standard(b_frames, LEVEL, C, EPS, dtype)
            b_k, b_v = keys_and_values(b_standard, b_wkv, M, C // H, PRECISION)
            keys += (b_k,)
            values += (b_v,)
        tl.debug_barrier()  # what other threads of this program have written is read from here on
        for j in tl.range(0, BLOCKS, disable_licm=True):
            o_block = o_sequence + j * (M * FRAME)
            b_x = laid_as_result(tl.load(p_y + o_block + o_x), b_out_bias, M, PRECISION)
            b_n = standard(b_x, LEVEL, C, EPS, dtype)
            b_x = plus_bias(b_x, b_out_bias, M, PRECISION)
            for h in tl.static_range(H):
                b_q = queries(b_n, heads[h], PRECISION)
                b_o = attend(b_q, keys, values, h, MOST, BLOCKS, PRECISION)
                b_x = tl.dot(b_o.to(dtype), tl.trans(heads[h][1]), b_x, input_precision=PRECISION)
            b_y = feed_forward(b_x, maps, LEVEL, M, C, EPS, PRECISION)
            o_block = o_sequence + as_if_new(j) * (M * FRAME)  # or its addresses would stay in registers all the time
            tl.store(p_y + o_block + o_x, b_y.to(dtype))


def takes(x: Tensor, weights: AxisLayerWeights, heads: int) -> bool:
    return x.shape[1] == _BLOCKS * _ROWS and narrow.is_narrow(x, weights, heads)


def launch_narrow_time(x: Tensor, taps: Sequence[Tensor], weights: AxisLayerWeights, ahead: int) -> Tensor:
    """Of folded weights. Contiguous (B, T, F, C) -> the same."""
    sequences = x.shape[0] * x.shape[2]
    programs = min(sequences, processors(x.device))  # one fills the registers of an SM
    y = torch.empty_like(x)
    names = "p_taps_norm_weight", "p_taps_norm_bias", "p_taps", "p_taps_bias"

    def cost() -> Cost:
        beyond = (0,) * HEADS if x.dtype in _MOST else ()  # loops for sums that are out of range
        loops = (sequences / max(programs, 1), _BLOCKS, *beyond)
        once = narrow.layer_cost(x, weights, x.shape[1], programs, loops)
        # rows go through once, and some of them again, to become those behind the taps, which are written and read
        again = (taps[2].shape[1] - 1) / _TURN
        return replace(once, l2_bytes=once.l2_bytes + (2 + again) * size(x))

    launch(
        narrow_time_kernel,
        programs,
        cost,
        num_warps=8,
        num_stages=1,
        **narrow.layer_arguments(x, y, weights),
        **{name: tensor.contiguous() for name, tensor in zip(names, taps, strict=True)},
        sequences=sequences,
        BANDS=x.shape[2],
        MOST=_MOST.get(x.dtype, 0.0),
        M=_ROWS,
        BLOCKS=_BLOCKS,
        TAPS=taps[2].shape[1],
        AHEAD=ahead,
        TURN=_TURN,
    )
    return y


def launch_time_layer(
    x: Tensor, taps: Sequence[Tensor], weights: Sequence[Tensor], heads: int, ahead: int, history: int, folded: bool
) -> Tensor:
    """(B, T, F, C) -> the same. ``weights``: as ``launch_axis_layer`` takes them."""
    x, layer = x.contiguous(), AxisLayerWeights(*weights)
    if not history and takes(x, layer, heads):
        return launch_narrow_time(x, taps, layer.prepared(x.dtype, folded), ahead)
    norm_weight, norm_bias, weight, bias = taps
    near = launch_norm_taps(x, norm_weight, norm_bias, weight, bias, ahead)
    return launch_axis_layer(near, weights, heads, "time", history, folded)


def _shape(x: Tensor, *_: object) -> Tensor:
    return like(x)


time_layer_operator = operator("time_layer", launch_time_layer, _shape)


def time_layer(
    x: Tensor,
    taps: tuple[Tensor, ...],
    weights: AxisLayerWeights,
    heads: int,
    ahead: int,
    history: int = 0,
    folded: bool = False,
) -> Tensor:
    return time_layer_operator(x.to(autocast_dtype(x)), list(taps), list(weights), heads, ahead, history, folded)
