"""The gradients of ``norm_taps``, in one walk along time.

With g the gradient that came back and n the normalised frames, that of n is the sum over taps k of
``weight[k] * g[t + before - k]``, and that of weight[k] the sum over t of ``n[t] * g[t + before - k]``, where
``before`` taps lie on frames before the present one: one window of g serves both. Sums over rows and frames are kept a
program and added up at the end, so that two identical steps give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.norm_taps.forward import frame_of, frames_of_program, norm_taps_operator, tap_rows
from fastenh_kernels.shared.launch import Cost, launch, size
from fastenh_kernels.shared.norm import EPS, row_of, standardise, through_norm
from fastenh_kernels.shared.operators import as_dtypes_of, like, operator, single

_ROWS = 4  # of a program, clips and bands
_TURN = 4  # frames
_ASKED_FOR = 2  # frames that are on their way while one is worked on
_RESIDENT = 5  # programs that the registers of an SM hold


@triton.jit(do_not_specialize=["rows", "frames", "chunk", "tiles"])
def norm_taps_backward_kernel(
    p_grad,  # (B, T, BANDS, C), contiguous
    p_x,  # the same
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (C, TAPS)
    p_grad_x,  # as x
    p_sums,  # (programs, TAPS + 3, C), float32: of the taps, their bias, the norm's weight and bias
    rows,  # B * BANDS
    frames,
    chunk,
    tiles,
    BANDS: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    AHEAD: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    ASKED: tl.constexpr,
    TURN: tl.constexpr,
):
    FRAME: tl.constexpr = BANDS * C
    BEFORE: tl.constexpr = TAPS - 1 - AHEAD
    i_tile = tl.program_id(0) % tiles
    first = (tl.program_id(0) // tiles).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, frames)
    o_row, o_c = i_tile * M + tl.arange(0, M), tl.arange(0, C)
    m_rows = (o_row < rows)[:, None]
    o_x = (o_row // BANDS).to(tl.int64) * frames * FRAME + o_row % BANDS * C
    o_x = o_x[:, None] + o_c[None, :]
    b_norm_weight, b_norm_bias = row_of(p_norm_weight, o_c), row_of(p_norm_bias, o_c)
    taps = tap_rows(p_weight, o_c, C, TAPS)
    sums = ()
    for _ in tl.static_range(TAPS + 3):
        sums += (tl.zeros([M, C], tl.float32),)
    grads = ()  # the frames from t - AHEAD to t + BEFORE + ASKED - 1
    for k in tl.static_range(TAPS - 1 + ASKED):
        grads += (frame_of(p_grad + o_x, first - AHEAD + k, m_rows, 0, frames, FRAME),)
    asked = ()  # of x, from t on
    for k in tl.static_range(ASKED):
        asked += (frame_of(p_x + o_x, first + k, m_rows, 0, last, FRAME),)
    for begin in tl.range(first, last, TURN):
        for k in tl.static_range(TURN):
            t = begin + k
            grads = grads + (frame_of(p_grad + o_x, t + BEFORE + ASKED, m_rows, 0, frames, FRAME),)
            asked = asked + (frame_of(p_x + o_x, t + ASKED, m_rows, 0, last, FRAME),)
            b_standard, b_inverse = standardise(asked[0].to(tl.float32), C, EPS)
            b_n = tl.where(m_rows & (t < last), b_standard * b_norm_weight + b_norm_bias, 0.0)
            b_dn = tl.zeros([M, C], tl.float32)
            found = ()
            for i in tl.static_range(TAPS):
                b_g = grads[TAPS - 1 - i].to(tl.float32)  # of frame t + BEFORE - i
                b_dn += b_g * taps[i]
                found += (sums[i] + b_g * b_n,)
            b_dn = tl.where(t < last, b_dn, 0.0)
            b_own = tl.where(t < last, grads[AHEAD].to(tl.float32), 0.0)
            sums = found + (sums[TAPS] + b_own, sums[TAPS + 1] + b_dn * b_standard, sums[TAPS + 2] + b_dn)
            b_dx = b_own + through_norm(b_dn, b_standard, b_inverse, b_norm_weight, C)
            tl.store(p_grad_x + o_x + t * FRAME, b_dx.to(p_grad_x.dtype.element_ty), mask=m_rows & (t < last))
            grads, asked = grads[1:], asked[1:]
    p_sum = p_sums + tl.program_id(0).to(tl.int64) * ((TAPS + 3) * C) + o_c
    for k in tl.static_range(TAPS + 3):
        tl.store(p_sum + k * C, tl.sum(sums[k], 0))


def launch_norm_taps_backward(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, ahead: int
) -> list[Tensor]:
    """Gradients of x and, in float32, of the norm's weight and bias, the taps (C, taps) and their bias."""
    x, grad = x.contiguous(), grad.contiguous()
    grad_x = torch.empty_like(x)
    batch, frames, bands, channels = x.shape
    taps = weight.shape[1]
    rows = batch * bands
    tiles = triton.cdiv(rows, _ROWS)
    chunk = frames_of_program(frames, tiles, _RESIDENT, x.device, 2, _TURN)
    chunks = triton.cdiv(frames, chunk)
    sums = torch.empty(tiles * chunks, taps + 3, channels, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        l2 = size(grad) * (1 + chunks * (taps - 1) / max(frames, 1)) + size(x, grad_x, sums)
        turns = triton.cdiv(frames, _TURN) / max(chunks, 1)
        return Cost((turns,), flop=0.0, l2_bytes=l2, dram_bytes=size(grad, x, grad_x, sums))

    launch(
        norm_taps_backward_kernel,
        tiles * chunks,
        cost,
        num_warps=2,
        num_stages=1,
        p_grad=grad,
        p_x=x,
        p_norm_weight=norm_weight.contiguous(),
        p_norm_bias=norm_bias.contiguous(),
        p_weight=weight.contiguous(),
        p_grad_x=grad_x,
        p_sums=sums,
        rows=rows,
        frames=frames,
        chunk=chunk,
        tiles=tiles,
        BANDS=bands,
        C=channels,
        TAPS=taps,
        AHEAD=ahead,
        EPS=EPS,
        M=_ROWS,
        ASKED=_ASKED_FOR,
        TURN=_TURN,
    )
    total = sums.sum(0)
    grad_bias, grad_norm_weight, grad_norm_bias = (row.clone() for row in total[taps:])  # an operator gives no views
    return [grad_x, grad_norm_weight, grad_norm_bias, total[:taps].T.contiguous(), grad_bias]


def _shapes(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, ahead: int
) -> list[Tensor]:
    return [like(x), single(norm_weight), single(norm_bias), single(weight), single(norm_bias)]


norm_taps_backward = operator("norm_taps_backward", launch_norm_taps_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.ahead = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *weights = ctx.saved_tensors
    grad_x, *gradients = norm_taps_backward(grad, x, *weights[:3], ctx.ahead)
    return grad_x, *as_dtypes_of(gradients, weights), None


norm_taps_operator.register_autograd(_gradient, setup_context=_keep)
