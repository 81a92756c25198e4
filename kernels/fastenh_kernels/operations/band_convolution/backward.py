"""The gradients of ``band_convolution``: of the rows, of their scale and shift, and of the weight, in one launch.

The gradient of the moments reaches the result as ``offset + slope * y``, a number each for every channel, and is added
to what came back as it is read. With h the activated rows and g that gradient, the gradient of h is the convolution
of g with the weight turned round, and that of the weight h^T g: both take g and g moved by a band either way. Sums over
frames are left by programs and added up at the end, so that two identical steps give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.band_convolution.forward import band_convolution_operator
from fastenh_kernels.shared.bands import shifted, silu_with_slope
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, parts_of, size, warpgroups
from fastenh_kernels.shared.moments import gradient_of_moments
from fastenh_kernels.shared.norm import affine_of
from fastenh_kernels.shared.operators import as_dtypes_of, like, operator, register_forked, single
from fastenh_kernels.shared.rounding import rounded
from fastenh_kernels.shared.rows import as_result, described, has_descriptors, load_rows, nothing, store_rows


@triton.jit
def through_silu(b_x, dtype, b_dh, b_scale, b_shift):
    """[M, C] silu(z) of z = x * scale + shift in the dtype of x, the gradient of z from that of silu(z), and its
    product with x."""
    b_fine = b_x.to(tl.float32)
    b_h, b_slope = silu_with_slope(b_fine * b_scale + b_shift, dtype)
    b_dz = b_dh * b_slope
    return rounded(b_h, dtype), b_dz, b_dz * b_fine


@triton.jit
def by_pairs(b_x, M: tl.constexpr, C: tl.constexpr, APART: tl.constexpr):
    """[M // 2, C] of [M, C]: sums of two rows that one thread holds. They are M / 2 apart where it loaded them, 8 apart
    where a product left them."""
    return tl.reshape(tl.sum(tl.reshape(b_x, (M // (2 * APART), 2, APART, C)), 1), (M // 2, C))


@triton.jit
def gradient_of(p_grad, p_y, o, m, b_slope, b_offset, MIX: tl.constexpr, M: tl.constexpr, C: tl.constexpr):
    """[M, C]: what came back with what the moments add to it. Without a mix [M, 4 C]: its upper neighbour, itself, its
    lower neighbour and nothing, side by side."""
    dtype = p_grad.dtype.element_ty
    b_g = tl.load(p_grad + o, mask=m, other=0.0).to(tl.float32)
    b_g += tl.load(p_y + o, mask=m, other=0.0).to(tl.float32) * b_slope + b_offset
    if MIX:
        b_g = b_g.to(dtype)
    else:
        b_taps = tl.join(shifted(b_g, 1, M, C).to(dtype), shifted(b_g, -1, M, C).to(dtype))
        b_g = b_g.to(dtype)
        b_g = tl.reshape(tl.join(b_taps, tl.join(b_g, tl.zeros_like(b_g))), (M, 4 * C))
    return b_g


@triton.jit(do_not_specialize=["frames", "programs"])
def band_convolution_backward_kernel(
    p_grad,  # (frames, M, C), contiguous
    p_y,  # as grad
    p_moments,  # (2, C): slope and offset of the gradient of the moments
    p_x,  # as grad, or its descriptor of (frames * M, C)
    p_affine,  # (2, C)
    p_skip,  # as x
    p_skip_affine,  # (2, C)
    p_other,  # as x: a gradient of x that is added
    p_weight,  # (4 C, C): to channel by the taps and nothing, from channel; with MIX (C, 2 C): for x and for the skip
    p_grad_x,  # as x
    p_grad_skip,  # as x
    p_weights,  # (programs, 3 C, C), float32: as p_weight, no nothing; with MIX (programs, 2 C, C): from, to channel
    p_sums,  # (programs, 4, C), float32: of the gradients of scale, shift, and those of the skip
    frames,
    programs,
    M: tl.constexpr,
    C: tl.constexpr,
    ACTIVE: tl.constexpr,
    MIX: tl.constexpr,
    OTHER: tl.constexpr,  # there is another gradient of x
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = p_grad.dtype.element_ty
    APART: tl.constexpr = 8 if DESCRIPTORS else M // 2
    o_m = tl.arange(0, M)
    o_c = tl.arange(0, C)
    o_x = tl.arange(0, M)[:, None] * C + o_c[None, :]
    b_slope, b_offset = affine_of(p_moments, C)
    b_scales, b_shifts, b_skip_scales, b_skip_shifts = (tl.zeros([M // 2, C], tl.float32),) * 4
    if ACTIVE:
        b_scale, b_shift = affine_of(p_affine, C)
    if MIX:
        if not ACTIVE:
            b_skip_scale, b_skip_shift = affine_of(p_skip_affine, C)
        o_w = o_c[:, None] * (2 * C) + o_c[None, :]
        b_skip_w = tl.load(p_weight + C + o_w)
        b_weights = tl.zeros([2 * C, C], tl.float32)
    else:
        o_w = tl.arange(0, 4 * C)[:, None] * C + o_c[None, :]
        b_weights = tl.zeros([4 * C, C], tl.float32)
    b_w = tl.load(p_weight + o_w)
    first = tl.program_id(0).to(tl.int64)
    rows = frames * M
    if DESCRIPTORS:
        b_nothing = nothing(M, C, dtype)
    b_g = gradient_of(p_grad, p_y, first * (M * C) + o_x, first < frames, b_slope, b_offset, MIX, M, C)
    for t in tl.range(first, frames, programs):
        if MIX:
            if ACTIVE:  # again for each frame, or the registers spill
                b_skip_scale, b_skip_shift = affine_of(p_skip_affine, C)
            b_dh = tl.dot(b_g, b_skip_w, input_precision=PRECISION)
            b_skip = load_rows(p_skip, o_m, o_c, t, 0, rows, C, DESCRIPTORS)
            if DESCRIPTORS:
                b_skip = as_result(b_skip, b_nothing)
            b_other, b_dz, b_dzx = through_silu(b_skip, dtype, b_dh, b_skip_scale, b_skip_shift)
            b_skip_scales += by_pairs(b_dzx, M, C, APART)
            b_skip_shifts += by_pairs(b_dz, M, C, APART)
            store_rows(p_grad_skip, rounded(b_dz * b_skip_scale, dtype), o_m, o_c, t, 0, rows, C, DESCRIPTORS)
        b_dh = tl.dot(b_g, b_w, input_precision=PRECISION)
        b_x = load_rows(p_x, o_m, o_c, t, 0, rows, C, DESCRIPTORS)
        if ACTIVE:
            if DESCRIPTORS:
                b_x = as_result(b_x, b_nothing)
            b_h, b_dz, b_dzx = through_silu(b_x, dtype, b_dh, b_scale, b_shift)
            b_scales += by_pairs(b_dzx, M, C, APART)
            b_shifts += by_pairs(b_dz, M, C, APART)
            b_dx = b_dz * b_scale
        else:
            b_h, b_dx = b_x, b_dh
        if OTHER:
            b_dx += load_rows(p_other, o_m, o_c, t, 0, rows, C, DESCRIPTORS).to(tl.float32)
        store_rows(p_grad_x, rounded(b_dx, dtype), o_m, o_c, t, 0, rows, C, DESCRIPTORS)
        if MIX:
            b_rows = tl.reshape(tl.join(b_h, b_other), (M, 2 * C))
            b_weights = tl.dot(tl.trans(b_rows), b_g, b_weights, input_precision=PRECISION)
        else:
            b_weights = tl.dot(tl.trans(b_g), b_h, b_weights, input_precision=PRECISION)
        t_next = t + programs
        b_g = gradient_of(p_grad, p_y, t_next * (M * C) + o_x, t_next < frames, b_slope, b_offset, MIX, M, C)
    p_found = p_weights + tl.program_id(0).to(tl.int64) * ((2 if MIX else 3) * C * C) + o_c[None, :]
    if MIX:
        tl.store(p_found + tl.arange(0, 2 * C)[:, None] * C, b_weights)
    else:
        o_taps = tl.arange(0, 4 * C)[:, None]
        tl.store(p_found + (o_taps - o_taps // 4) * C, b_weights, mask=o_taps % 4 < 3)
    p_sum = p_sums + tl.program_id(0).to(tl.int64) * (4 * C) + o_c
    if ACTIVE:
        tl.store(p_sum, tl.sum(b_scales, 0))
        tl.store(p_sum + C, tl.sum(b_shifts, 0))
    if MIX:
        tl.store(p_sum + 2 * C, tl.sum(b_skip_scales, 0))
        tl.store(p_sum + 3 * C, tl.sum(b_skip_shifts, 0))


def launch_band_convolution_backward(
    grad: Tensor,
    moments: Tensor,
    y: Tensor,
    x: Tensor,
    affine: Tensor | None,
    weight: Tensor,
    skip: Tensor | None,
    skip_affine: Tensor | None,
    other: Tensor | None,
) -> list[Tensor]:
    """Gradients of x, of the weight and, where they were given, of affine, skip and skip_affine; float32 but for x and
    skip. moments: (2, C), slope and offset of what the gradient of the moments adds to ``grad``; other: a gradient of x
    that is added to the one found here."""
    x, grad, y = x.contiguous(), grad.contiguous(), y.contiguous()
    (batch, length, bands, channels), mix, active = x.shape, skip is not None, affine is not None
    tile, warps = (bands, 4) if warpgroups(x.device) else (min(bands, 32) if mix else bands, 8)
    descriptors = has_descriptors(x)
    frames = batch * length * (bands // tile)  # a mix knows no neighbours: elsewhere it takes fewer rows at a time
    programs = min(frames, parts_of(frames, 1, x.device))
    matrices = _side_by_side(weight).to(x.dtype).contiguous()
    grad_x = torch.empty_like(x)
    grad_skip = torch.empty_like(x) if mix else grad_x
    weights = torch.empty(programs, (2 if mix else 3) * channels, channels, dtype=torch.float32, device=x.device)
    sums = torch.empty(programs, 4, channels, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        moved = size(grad, y, x, grad_x, weights, sums) + (size(skip, grad_skip) if skip is not None else 0)
        moved += size(other) if other is not None else 0
        flop = 4 * frames * tile * weight.numel()
        l2 = moved + programs * size(matrices)
        return Cost((frames / max(programs, 1),), flop, l2_bytes=l2, dram_bytes=moved + size(matrices))

    launch(
        band_convolution_backward_kernel,
        programs,
        cost,
        num_warps=warps,
        num_stages=1,
        p_grad=grad,
        p_y=y,
        p_moments=moments,
        p_x=described(x, tile, channels, descriptors),
        p_affine=moments if affine is None else affine.contiguous(),
        p_skip=described(x if skip is None else skip.contiguous(), tile, channels, descriptors),
        p_skip_affine=moments if skip_affine is None else skip_affine.contiguous(),
        p_other=described(x if other is None else other.contiguous(), tile, channels, descriptors),
        p_weight=matrices,
        p_grad_x=described(grad_x, tile, channels, descriptors),
        p_grad_skip=described(grad_skip, tile, channels, descriptors),
        p_weights=weights,
        p_sums=sums,
        frames=frames,
        programs=programs,
        M=tile,
        C=channels,
        ACTIVE=active,
        MIX=mix,
        OTHER=other is not None,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    found = weights.sum(0).view(channels, -1, channels)
    found = found.transpose(0, 2).reshape(channels, -1, 1) if mix else found.transpose(1, 2)
    of_affine, of_skip = sums.sum(0).view(2, 2, channels)  # an operator gives no views
    of_skip = [grad_skip, of_skip.clone()] if mix else []
    return [grad_x, found.contiguous(), *([of_affine.clone()] if active else []), *of_skip]


def _side_by_side(weight: Tensor) -> Tensor:
    """(C, C, 3) -> (C, 4, C), to each channel by the taps and a column of zeros; (C, 2C, 1) -> (C, 2C)."""
    if weight.shape[2] == 1:
        return weight.squeeze(2)
    return F.pad(weight, (0, 1)).transpose(1, 2)


def _shapes(
    grad: Tensor,
    moments: Tensor,
    y: Tensor,
    x: Tensor,
    affine: Tensor | None,
    weight: Tensor,
    skip: Tensor | None,
    skip_affine: Tensor | None,
    other: Tensor | None,
) -> list[Tensor]:
    of_skip = [] if skip is None else [like(x), torch.empty_like(moments)]
    return [like(x), single(weight), *([] if affine is None else [torch.empty_like(moments)]), *of_skip]


band_convolution_backward = operator("band_convolution_backward", launch_band_convolution_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    y, mean, _ = output
    ctx.save_for_backward(y, mean, *inputs)


def _gradient(
    ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor, other: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    y, mean, x, affine, weight, skip, skip_affine = ctx.saved_tensors
    moments = torch.stack(gradient_of_moments(y.numel() // y.shape[3], mean, grad_mean, grad_var))
    found = band_convolution_backward(grad, moments, y, x, affine, weight, skip, skip_affine, other)
    inputs = (x, weight, affine, skip, skip_affine)
    gradients = iter(as_dtypes_of(found, [tensor for tensor in inputs if tensor is not None]))
    of_x, of_weight, *others = (tensor if tensor is None else next(gradients) for tensor in inputs)
    return of_x, others[0], of_weight, *others[1:]


band_convolution_operator.register_autograd(_gradient, setup_context=_keep)
register_forked("band_convolution", band_convolution_operator, _gradient, _keep)
