"""A convolution within a frame that normalises what it reads, and parts of the moments of what it gives.

A program takes frame after frame, and leaves a part of the moments (``shared/moments.py``) that is put together with
the others as ``upsampled_moments`` does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.bands import exchanged, silu
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, parts_of, size
from fastenh_kernels.shared.moments import combined_moments, store_moments
from fastenh_kernels.shared.norm import affine_of
from fastenh_kernels.shared.operators import FORKED, like, operator
from fastenh_kernels.shared.rounding import rounded
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows, store_rows


@triton.jit(do_not_specialize=["frames", "programs"])
def band_convolution_kernel(
    p_x,  # (frames, M, C), contiguous
    p_affine,  # (2, C)
    p_skip,  # as x
    p_skip_affine,  # (2, C)
    p_weight,  # (3, C, C): from channel, to channel; with MIX (2, C, C): for x and for the skip
    p_y,  # as x
    p_parts,  # (programs, 2 C + 1), float32: means, sums of squared deviations, count
    frames,
    programs,
    M: tl.constexpr,
    C: tl.constexpr,
    ACTIVE: tl.constexpr,  # x is normalised and activated
    MIX: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = p_weight.dtype.element_ty
    o_m, o_c = tl.arange(0, M), tl.arange(0, C)
    p_matrix = p_weight + o_c[:, None] * C + o_c[None, :]
    b_w0, b_w1 = tl.load(p_matrix), tl.load(p_matrix + C * C)
    if ACTIVE:
        b_scale, b_shift = affine_of(p_affine, C)
    if MIX:
        b_skip_scale, b_skip_shift = affine_of(p_skip_affine, C)
    else:
        b_w2 = tl.load(p_matrix + 2 * C * C)
    b_first, b_sum, b_square = (tl.zeros([M, C], tl.float32),) * 3
    first = tl.program_id(0).to(tl.int64)
    for t in tl.range(first, frames, programs):
        b_x = load_rows(p_x, o_m, o_c, t, 0, frames * M, C, DESCRIPTORS)
        if ACTIVE:
            b_x = silu(b_x.to(tl.float32) * b_scale + b_shift, dtype)
        if MIX:
            b_skip = load_rows(p_skip, o_m, o_c, t, 0, frames * M, C, DESCRIPTORS).to(tl.float32)
            b_skip = silu(b_skip * b_skip_scale + b_skip_shift, dtype).to(dtype)
            b_y = tl.dot(b_x.to(dtype), b_w0, input_precision=PRECISION)
            b_y = tl.dot(b_skip, b_w1, b_y, input_precision=PRECISION)
        else:
            b_x = b_x.to(dtype)
            b_lower, b_upper = exchanged(b_x, M, C)
            b_y = tl.dot(b_x, b_w1, input_precision=PRECISION)
            b_y = tl.dot(b_lower, b_w0, b_y, input_precision=PRECISION)
            b_y = tl.dot(b_upper, b_w2, b_y, input_precision=PRECISION)
        b_y = rounded(b_y, dtype)
        store_rows(p_y, b_y, o_m, o_c, t, 0, frames * M, C, DESCRIPTORS)
        b_y = b_y.to(tl.float32)  # moments of what is stored, since that is normalised
        b_first = tl.where(t == first, b_y, b_first)
        b_y -= b_first
        b_sum += b_y
        b_square += b_y * b_y
    count = ((frames - first + programs - 1) // programs).to(tl.float32)
    store_moments(p_parts + first * (2 * C + 1), b_first, b_sum, b_square, count, M, C)


def launch_band_convolution(
    x: Tensor, affine: Tensor | None, weight: Tensor, skip: Tensor | None, skip_affine: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The weight is rounded to the dtype of x."""
    x = x.contiguous()
    y = torch.empty_like(x)
    batch, length, bands, channels = x.shape
    frames = batch * length
    descriptors = has_descriptors(x)
    programs = min(frames, parts_of(frames, 1, x.device))
    matrices = matrices_of(weight, x.dtype)
    parts = torch.empty(programs, 2 * channels + 1, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        moved = size(x, y, parts) + (size(skip) if skip is not None else 0)
        flop = 2 * frames * bands * weight.numel()
        l2 = moved + programs * size(matrices)
        return Cost((frames / max(programs, 1),), flop, l2_bytes=l2, dram_bytes=moved + size(matrices))

    launch(
        band_convolution_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_x=described(x, bands, channels, descriptors),
        p_affine=parts if affine is None else affine.contiguous(),
        p_skip=described(x if skip is None else skip.contiguous(), bands, channels, descriptors),
        p_skip_affine=parts if skip_affine is None else skip_affine.contiguous(),
        p_weight=matrices,
        p_y=described(y, bands, channels, descriptors),
        p_parts=parts,
        frames=frames,
        programs=programs,
        M=bands,
        C=channels,
        ACTIVE=affine is not None,
        MIX=skip is not None,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    return y, *combined_moments(parts)


def matrices_of(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(C, C, 3) or (C, 2C, 1) -> (3 or 2, C, C): from channel, to channel."""
    channels = weight.shape[0]
    return weight.permute(2, 1, 0).to(dtype).contiguous().view(-1, channels, channels)


def _shapes(x: Tensor, affine: Tensor | None, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[3], dtype=torch.float32)
    return like(x), mean, torch.empty_like(mean)


band_convolution_operator = operator("band_convolution", launch_band_convolution, _shapes)


def band_convolution(
    x: Tensor,
    affine: Tensor | None,
    weight: Tensor,
    skip: Tensor | None = None,
    skip_affine: Tensor | None = None,
    forked: bool = False,
) -> tuple[Tensor, ...]:
    dtype = autocast_dtype(x)
    call = FORKED["band_convolution"] if forked else band_convolution_operator
    return call(x.to(dtype), affine, weight, skip if skip is None else skip.to(dtype), skip_affine)
