"""LN, QKV and attention of a short sequence in one launch: neither the normalised rows nor Q, K and V leave the chip.

A program takes a whole sequence of up to 192 positions, in blocks of 64: it normalises the rows once and then takes a
head after the other. Keys and values of a head come out of one product of 64 columns, which is split in registers.
Through DRAM go x and the result, 2 activations; two launches with QKV between them move 8.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.sequences import dimensions, scale, strides
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, size, warpgroups
from fastenh_kernels.shared.norm import EPS, normalise, row_of

_ROWS = 64  # of a block
_LONGEST = 3  # blocks: more do not fit the registers


@triton.jit(do_not_specialize=["inner", "length"])
def norm_attention_kernel(
    p_x,  # (outer, inner, length, C) by strides
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (3C, C)
    p_bias,  # (3C,)
    p_out,  # (outer, inner, length, C), strides as of x
    inner,
    length,
    s_outer,
    s_inner,
    s,
    C: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt(D), times log2(e): the exponentials are powers of 2
    M: tl.constexpr,
    BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_outer = (tl.program_id(0) // inner).to(tl.int64)
    i_inner = (tl.program_id(0) % inner).to(tl.int64)
    o_sequence = i_outer * s_outer + i_inner * s_inner
    p_x += o_sequence
    p_out += o_sequence
    o_c = tl.arange(0, C)
    o_d = tl.arange(0, D)
    o_kv = tl.arange(0, 2 * D)
    rows = ()
    for i in tl.static_range(BLOCKS):
        o_m = i * M + tl.arange(0, M)
        m_m = (o_m < length)[:, None] | (i < BLOCKS - 1)  # only the last block can end early
        b_x = tl.load(p_x + o_m[:, None] * s + o_c[None, :], mask=m_m, other=0.0).to(tl.float32)
        b_x = normalise(b_x, row_of(p_norm_weight, o_c), row_of(p_norm_bias, o_c), C, EPS)
        rows += (b_x.to(p_weight.dtype.element_ty),)  # [M, C]
    for h in tl.range(0, H):
        o_rows = C + o_kv // D * C + h * D + o_kv % D  # of the weight: keys of the head, then its values
        b_wq = tl.load(p_weight + (h * D + o_d)[:, None] * C + o_c[None, :])  # [D, C]
        b_wkv = tl.load(p_weight + o_rows[:, None] * C + o_c[None, :])  # [2D, C]
        b_bq = row_of(p_bias, h * D + o_d)
        b_bkv = row_of(p_bias, o_rows)
        queries, keys, values = (), (), ()
        for i in tl.static_range(BLOCKS):
            b_q = tl.dot(rows[i], tl.trans(b_wq), input_precision=PRECISION) + b_bq
            b_kv = tl.dot(rows[i], tl.trans(b_wkv), input_precision=PRECISION) + b_bkv
            b_kv = b_kv.to(p_weight.dtype.element_ty)
            b_k, b_v = tl.split(tl.permute(tl.reshape(b_kv, (M, 2, D)), (0, 2, 1)))
            queries += (b_q.to(p_weight.dtype.element_ty),)  # [M, D]
            keys += (b_k,)
            values += (b_v,)
        for r in tl.static_range(BLOCKS):
            scores = ()
            b_max = tl.full([M], float("-inf"), tl.float32)
            for i in tl.static_range(BLOCKS):
                b_s = tl.dot(queries[r], tl.trans(keys[i]), input_precision=PRECISION)  # [M, M]
                if i == BLOCKS - 1:
                    b_s = tl.where((i * M + tl.arange(0, M) < length)[None, :], b_s, float("-inf"))
                b_max = tl.maximum(b_max, tl.max(b_s, 1))
                scores += (b_s,)
            b_max = b_max * SCALE
            b_sum = tl.zeros([M], tl.float32)
            b_out = tl.zeros([M, D], tl.float32)
            for i in tl.static_range(BLOCKS):
                b_p = tl.exp2(scores[i] * SCALE - b_max[:, None])
                b_sum += tl.sum(b_p, 1)
                b_out = tl.dot(b_p.to(p_weight.dtype.element_ty), values[i], b_out, input_precision=PRECISION)
            b_out = b_out * (1.0 / b_sum)[:, None]
            o_m = r * M + tl.arange(0, M)
            p_o = p_out + o_m[:, None] * s + (h * D + o_d)[None, :]
            m_m = (o_m < length)[:, None] | (r < BLOCKS - 1)
            tl.store(p_o, b_out.to(p_out.dtype.element_ty), mask=m_m)


def pays(x: Tensor, heads: int, axis: str) -> bool:
    """Whether ``norm_attention`` takes this axis, and would waste at most a fifth of its rows on padding."""
    length = x.shape[dimensions(axis)[1]]
    blocks = triton.cdiv(length, _ROWS)
    fits = x.element_size() == 2 and x.shape[3] // heads == 32 and 0 < blocks <= _LONGEST
    fits = fits and warpgroups(x.device)  # on sm_80 it spills
    return fits and length >= 0.8 * blocks * _ROWS


def launch_norm_attention(x: Tensor, weights: AxisLayerWeights, heads: int, axis: str) -> Tensor:
    """Attention along F ("frequency") or T ("time") of LN(x), projected. Contiguous (B, T, F, C) -> the same."""
    channels = x.shape[3]
    inner, along = dimensions(axis)
    length, programs = x.shape[along], x.shape[0] * x.shape[inner]
    out = torch.empty_like(x)

    def cost() -> Cost:
        flop = 2 * x.numel() * (3 * channels + 2 * length)
        l2 = size(x, out) + programs * size(weights.qkv_weight)
        return Cost((heads,), flop, l2_bytes=l2, dram_bytes=size(x, out, weights.qkv_weight))

    launch(
        norm_attention_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_x=x,
        p_norm_weight=weights.norm1_weight,
        p_norm_bias=weights.norm1_bias,
        p_weight=weights.qkv_weight,
        p_bias=weights.qkv_bias,
        p_out=out,
        inner=x.shape[inner],
        length=length,
        **strides("s", x, axis),
        C=channels,
        H=heads,
        D=channels // heads,
        EPS=EPS,
        SCALE=scale(channels // heads),
        M=_ROWS,
        BLOCKS=triton.cdiv(length, _ROWS),
        PRECISION=dot_precision(x),
    )
    return out
