"""The gradients of weight and bias of ``encoder_front``; the features log1p|X| are computed again.

A program walks along time with a tile of (clip, band) rows, holds the features of three frames, and adds each, times
the gradient of the result, to sums in registers: nine taps and the bias, one sum a row and channel. They are summed
over the rows at the end, and over the programs afterwards, in one order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.encoder_front.forward import encoder_front_operator, feature
from fastenh_kernels.shared.launch import Cost, chunk_of, launch, size
from fastenh_kernels.shared.operators import as_dtypes_of, operator

_VALUES, _WARPS = {2: 2048, 4: 1024}, 4  # bytes of a value: rows times channels of a program, ten sums of each


@triton.jit
def _features(p_x, m, o_band, s_f, BINS: tl.constexpr):
    """Three [M, 1]: the bins of a row."""
    b_low = feature(p_x - s_f, m & (o_band > 0))
    b_mid = feature(p_x, m)
    b_high = feature(p_x + s_f, m & (2 * o_band + 1 < BINS))
    return b_low, b_mid, b_high


@triton.jit
def _store(p_part, o_c, b_low, b_mid, b_high, tap: tl.constexpr):
    """[M, C] three times, sums over the rows, as the weight lies: (C, 3 frequency taps, 3 time taps)."""
    tl.store(p_part + o_c * 9 + tap, tl.sum(b_low, 0))
    tl.store(p_part + o_c * 9 + 3 + tap, tl.sum(b_mid, 0))
    tl.store(p_part + o_c * 9 + 6 + tap, tl.sum(b_high, 0))


@triton.jit(do_not_specialize=["rows", "frames", "chunk", "tiles"])
def encoder_front_backward_kernel(
    p_grad,  # (B, T, BANDS, C), contiguous
    p_spectrum,  # (B, bins, T, 2) by strides
    p_parts,  # (programs, 10 C): weight, bias
    rows,  # B * BANDS
    frames,
    chunk,
    tiles,
    s_b,
    s_f,
    s_t,
    BINS: tl.constexpr,
    BANDS: tl.constexpr,
    C: tl.constexpr,
    M: tl.constexpr,
):
    first = (tl.program_id(0) // tiles).to(tl.int64) * chunk
    o_row = tl.program_id(0) % tiles * M + tl.arange(0, M)
    o_b, o_band = (o_row // BANDS).to(tl.int64), o_row % BANDS
    o_c = tl.arange(0, C)
    m = o_row < rows
    p_x = p_spectrum + o_b * s_b + 2 * o_band.to(tl.int64) * s_f
    p_g = p_grad + (o_b * frames * (BANDS * C) + o_band * C)[:, None] + o_c[None, :]
    b_00, b_01, b_02 = _features(p_x + (first - 1) * s_t, m & (first > 0), o_band, s_f, BINS)  # of the frame before t
    b_10, b_11, b_12 = _features(p_x + first * s_t, m, o_band, s_f, BINS)  # of frame t
    b_bias = tl.zeros([M, C], tl.float32)
    b_before0, b_before1, b_before2 = b_bias, b_bias, b_bias
    b_own0, b_own1, b_own2 = b_bias, b_bias, b_bias
    b_behind0, b_behind1, b_behind2 = b_bias, b_bias, b_bias
    for t in tl.range(first, tl.minimum(first + chunk, frames)):
        b_20, b_21, b_22 = _features(p_x + (t + 1) * s_t, m & (t + 1 < frames), o_band, s_f, BINS)
        b_g = tl.load(p_g + t * (BANDS * C), mask=m[:, None], other=0.0).to(tl.float32)  # [M, C]
        b_bias += b_g
        b_before0 += b_00 * b_g
        b_before1 += b_01 * b_g
        b_before2 += b_02 * b_g
        b_own0 += b_10 * b_g
        b_own1 += b_11 * b_g
        b_own2 += b_12 * b_g
        b_behind0 += b_20 * b_g
        b_behind1 += b_21 * b_g
        b_behind2 += b_22 * b_g
        b_00, b_01, b_02 = b_10, b_11, b_12
        b_10, b_11, b_12 = b_20, b_21, b_22
    p_part = p_parts + tl.program_id(0).to(tl.int64) * (10 * C)
    _store(p_part, o_c, b_before0, b_before1, b_before2, 0)
    _store(p_part, o_c, b_own0, b_own1, b_own2, 1)
    _store(p_part, o_c, b_behind0, b_behind1, b_behind2, 2)
    tl.store(p_part + 9 * C + o_c, tl.sum(b_bias, 0))


def launch_encoder_front_backward(grad: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients, in float32, of the weight (C, 1, 3, 3) and the bias (C,) of ``encoder_front`` without ReLU.

    grad: (B, T, (bins + 1) // 2, C); spectrum: complex (B, bins, T), any strides.
    """
    batch, bins, frames = spectrum.shape
    bands, channels = grad.shape[2:]
    pairs = torch.view_as_real(spectrum)
    rows = max(1, min(64, _VALUES[grad.element_size()] // channels))
    tiles = triton.cdiv(batch * bands, rows)
    chunk = chunk_of(frames, tiles, spectrum.device)
    chunks = triton.cdiv(frames, chunk)
    parts = torch.empty(tiles * chunks, 10 * channels, dtype=torch.float32, device=spectrum.device)

    def cost() -> Cost:  # a row reads three bins of a frame, two of them its own
        l2 = 1.5 * size(spectrum) * (frames + 2 * chunks) / max(frames, 1) + size(grad, parts)
        dram = size(spectrum, grad, parts)
        return Cost((frames / max(chunks, 1),), flop=0, l2_bytes=l2, dram_bytes=dram)

    launch(
        encoder_front_backward_kernel,
        tiles * chunks,
        cost,
        num_warps=_WARPS,
        num_stages=1,
        p_grad=grad.contiguous(),
        p_spectrum=pairs,
        p_parts=parts,
        rows=batch * bands,
        frames=frames,
        chunk=chunk,
        tiles=tiles,
        s_b=pairs.stride(0),
        s_f=pairs.stride(1),
        s_t=pairs.stride(2),
        BINS=bins,
        BANDS=bands,
        C=channels,
        M=rows,
    )
    weight, bias = parts.sum(0).split([9 * channels, channels])
    return weight.view(channels, 1, 3, 3), bias.clone()  # results of an operator share no memory


def _shapes(grad: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    channels = grad.shape[3]
    weight = grad.new_empty((channels, 1, 3, 3), dtype=torch.float32)
    return weight, weight.new_empty(channels)


encoder_front_backward = operator("encoder_front_backward", launch_encoder_front_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    spectrum, weight, bias, ctx.relu, _ = inputs
    ctx.save_for_backward(spectrum, weight, bias, output if ctx.relu else None)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    spectrum, weight, bias, output = ctx.saved_tensors
    gradients = encoder_front_backward(grad * (output > 0) if ctx.relu else grad, spectrum)
    return None, *as_dtypes_of(gradients, (weight, bias)), None, None


encoder_front_operator.register_autograd(_gradient, setup_context=_keep)
