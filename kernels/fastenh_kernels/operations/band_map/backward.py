"""The gradients of ``band_map``: of the rows, of their scale and shift, of both matrices and of what is added.

With A the map over bands, W that over channels, h the activated rows and g what came back, the gradient of h is
``R W`` with ``R = A^T g``, that of W is ``R^T h``, and that of A is ``g (h W^T)^T = (g W) h^T``. Of the two forms of
each product the one with 64 rows is taken, which the fast instructions want. Sums over frames are left by programs and
added up at the end, so that two identical steps give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.band_convolution.backward import by_pairs, through_silu
from fastenh_kernels.operations.band_map.forward import band_map_operator
from fastenh_kernels.shared.bands import matrix_of
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, parts_of, size, warpgroups
from fastenh_kernels.shared.norm import affine_of
from fastenh_kernels.shared.operators import as_dtypes_of, like, operator, register_forked, single
from fastenh_kernels.shared.rounding import rounded
from fastenh_kernels.shared.rows import as_result, described, has_descriptors, load_rows, nothing, store_rows


@triton.jit(do_not_specialize=["frames", "programs"])
def band_map_backward_kernel(
    p_grad,  # (frames, N, W), contiguous
    p_x,  # (frames, M, C), contiguous
    p_affine,  # (2, C)
    p_bands,  # (N, M)
    p_weight,  # (W, C)
    p_other,  # (frames, M, C), contiguous: a gradient of x that is added
    p_grad_x,  # as x
    p_parts,  # (programs, PART), float32: of bands (N, M), weight (W, C), what is added (N, W), scale and shift (2, C)
    frames,
    programs,
    M: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    PART: tl.constexpr,
    ACTIVE: tl.constexpr,
    OTHER: tl.constexpr,  # there is another gradient of x
    FEWER: tl.constexpr,  # bands come out than go in
    AGAIN: tl.constexpr,  # matrices, scale and shift are loaded for each frame, or the registers spill
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = p_grad.dtype.element_ty
    APART: tl.constexpr = 8 if DESCRIPTORS else M // 2
    o_m, o_n, o_c, o_w = tl.arange(0, M), tl.arange(0, N), tl.arange(0, C), tl.arange(0, W)
    o_g = o_n[:, None] * W + o_w[None, :]
    if DESCRIPTORS:
        b_nothing = nothing(M, C, dtype)
    b_from = matrix_of(p_bands, N, M, M)  # [M, N]
    b_w = tl.load(p_weight + o_w[:, None] * C + o_c[None, :])
    b_added = tl.zeros([N, W], tl.float32)
    b_scales, b_shifts = (tl.zeros([M // 2, C], tl.float32),) * 2
    if ACTIVE:
        b_scale, b_shift = affine_of(p_affine, C)
    if FEWER:
        b_w_across = matrix_of(p_weight, W, C, C)  # [C, W]
        b_of_bands, b_of_weight = tl.zeros([M, N], tl.float32), tl.zeros([W, C], tl.float32)
    else:
        b_of_bands, b_of_weight = tl.zeros([N, M], tl.float32), tl.zeros([C, W], tl.float32)
    for t in tl.range(tl.program_id(0).to(tl.int64), frames, programs, disable_licm=True):
        if AGAIN:
            b_w = tl.load(p_weight + o_w[:, None] * C + o_c[None, :])
            b_from = matrix_of(p_bands, N, M, M)
            if FEWER:
                b_w_across = matrix_of(p_weight, W, C, C)
            if ACTIVE:
                b_scale, b_shift = affine_of(p_affine, C)
        b_g = tl.load(p_grad + t * (N * W) + o_g)
        b_added += b_g.to(tl.float32)
        b_r = tl.dot(b_from, b_g, input_precision=PRECISION).to(dtype)  # [M, W]
        b_dh = tl.dot(b_r, b_w, input_precision=PRECISION)
        b_x = load_rows(p_x, o_m, o_c, t, 0, frames * M, C, DESCRIPTORS)
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
            b_dx += tl.load(p_other + t * (M * C) + o_m[:, None] * C + o_c[None, :]).to(tl.float32)
        store_rows(p_grad_x, rounded(b_dx, dtype), o_m, o_c, t, 0, frames * M, C, DESCRIPTORS)
        if FEWER:
            b_s = tl.dot(b_h, b_w_across, input_precision=PRECISION).to(dtype)  # [M, W]
            b_of_bands = tl.dot(b_s, tl.trans(b_g), b_of_bands, input_precision=PRECISION)
            b_of_weight = tl.dot(tl.trans(b_r), b_h, b_of_weight, input_precision=PRECISION)
        else:
            b_p = tl.dot(b_g, b_w, input_precision=PRECISION).to(dtype)  # [N, C]
            b_of_bands = tl.dot(b_p, tl.trans(b_h), b_of_bands, input_precision=PRECISION)
            b_of_weight = tl.dot(tl.trans(b_h), b_r, b_of_weight, input_precision=PRECISION)
    p_part = p_parts + tl.program_id(0).to(tl.int64) * PART
    if FEWER:
        tl.store(p_part + o_n[None, :] * M + o_m[:, None], b_of_bands)
        tl.store(p_part + N * M + o_w[:, None] * C + o_c[None, :], b_of_weight)
    else:
        tl.store(p_part + o_n[:, None] * M + o_m[None, :], b_of_bands)
        tl.store(p_part + N * M + o_w[None, :] * C + o_c[:, None], b_of_weight)
    tl.store(p_part + N * M + W * C + o_g, b_added)
    if ACTIVE:
        p_part += N * M + W * C + N * W + o_c
        tl.store(p_part, tl.sum(b_scales, 0))
        tl.store(p_part + C, tl.sum(b_shifts, 0))


def launch_band_map_backward(
    grad: Tensor, x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, other: Tensor | None
) -> list[Tensor]:
    """Gradients of x and, in float32, of bands, weight, what is added and, where it was given, affine. other: a
    gradient of x that is added to the one found here."""
    x, grad, grad_x = x.contiguous(), grad.contiguous(), like(x)
    bands, weight = bands.to(x.dtype).contiguous(), weight.to(x.dtype).contiguous()
    frames, (count, wide), (width, channels) = x.shape[0] * x.shape[1], bands.shape, weight.shape
    programs = min(frames, parts_of(frames, 1, x.device))
    descriptors = has_descriptors(x)
    sizes = [bands.numel(), weight.numel(), count * width, 2 * channels if affine is not None else 0]
    parts = torch.empty(programs, sum(sizes), dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        flop = 2 * frames * (3 * wide * width * channels + 2 * min(wide, count) * max(wide, count) * width)
        moved = size(grad, x, grad_x, parts) + (size(other) if other is not None else 0)
        l2 = moved + programs * size(bands, weight)
        return Cost((frames / max(programs, 1),), flop, l2_bytes=l2, dram_bytes=moved + size(bands, weight))

    launch(
        band_map_backward_kernel,
        programs,
        cost,
        num_warps=4 if warpgroups(x.device) else 8,
        num_stages=1,
        p_grad=grad,
        p_x=described(x, wide, channels, descriptors),
        p_affine=parts if affine is None else affine.contiguous(),
        p_bands=bands,
        p_weight=weight,
        p_other=x if other is None else other.contiguous(),
        p_grad_x=described(grad_x, wide, channels, descriptors),
        p_parts=parts,
        frames=frames,
        programs=programs,
        M=wide,
        C=channels,
        N=count,
        W=width,
        PART=sum(sizes),
        ACTIVE=affine is not None,
        OTHER=other is not None,
        FEWER=count < wide,
        AGAIN=not warpgroups(x.device),
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    of_bands, of_weight, of_added, of_affine = (part.clone() for part in parts.sum(0).split(sizes))
    found = [grad_x, of_bands.view(count, wide), of_weight.view(width, channels), of_added.view(count, width)]
    return found if affine is None else [*found, of_affine.view(2, channels)]


def _shapes(
    grad: Tensor, x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, other: Tensor | None
) -> list[Tensor]:
    found = [like(x), single(bands), single(weight), single(grad[0, 0])]
    return found if affine is None else [*found, single(affine)]


band_map_backward = operator("band_map_backward", launch_band_map_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    *kept, added = inputs
    assert added is not None
    ctx.save_for_backward(*kept)
    ctx.dtype = added.dtype


def _gradient(ctx: Any, grad: Tensor, other: Tensor | None = None) -> tuple[Tensor | None, ...]:
    x, affine, bands, weight = ctx.saved_tensors
    grad_x, of_bands, of_weight, of_added, *of_affine = band_map_backward(grad, x, affine, bands, weight, other)
    of_bands, of_weight = as_dtypes_of((of_bands, of_weight), (bands, weight))
    return grad_x, of_affine[0].to(affine.dtype) if of_affine else None, of_bands, of_weight, of_added.to(ctx.dtype)


band_map_operator.register_autograd(_gradient, setup_context=_keep)
register_forked("band_map", band_map_operator, _gradient, _keep)
