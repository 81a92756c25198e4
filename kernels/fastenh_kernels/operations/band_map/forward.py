"""Both products of ``band_map`` on the chip: a program takes frame after frame."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.bands import matrix_of, silu
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, parts_of, size, warpgroups
from fastenh_kernels.shared.norm import affine_of
from fastenh_kernels.shared.operators import FORKED, operator


@triton.jit(do_not_specialize=["frames", "programs"])
def band_map_kernel(
    p_x,  # (frames, M, C), contiguous
    p_affine,  # (2, C)
    p_bands,  # (N, M)
    p_weight,  # (W, C)
    p_added,  # (N, W)
    p_y,  # (frames, N, W)
    frames,
    programs,
    M: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,  # N or more, what is behind N is zero
    ACTIVE: tl.constexpr,  # x is normalised and activated
    PRECISION: tl.constexpr,
):
    dtype = p_x.dtype.element_ty
    o_c, o_w, o_n = tl.arange(0, C), tl.arange(0, W), tl.arange(0, ROWS)
    m_n = o_n[:, None] < N
    b_bands = tl.load(p_bands + o_n[:, None] * M + tl.arange(0, M)[None, :], mask=m_n, other=0.0)
    b_weight = matrix_of(p_weight, W, C, C)
    o_y = o_n[:, None] * W + o_w[None, :]
    b_added = tl.load(p_added + o_y, mask=m_n, other=0.0).to(tl.float32)
    if ACTIVE:
        b_scale, b_shift = affine_of(p_affine, C)
    o_x = tl.arange(0, M)[:, None] * C + o_c[None, :]
    for t in tl.range(tl.program_id(0).to(tl.int64), frames, programs):
        b_x = tl.load(p_x + t * (M * C) + o_x)
        if ACTIVE:
            b_x = silu(b_x.to(tl.float32) * b_scale + b_shift, dtype).to(dtype)
        b_z = tl.dot(b_bands, b_x, input_precision=PRECISION).to(dtype)  # [ROWS, C]
        b_y = tl.dot(b_z, b_weight, b_added, input_precision=PRECISION)
        tl.store(p_y + t * (N * W) + o_y, b_y.to(dtype), mask=m_n)


def launch_band_map(x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor) -> Tensor:
    """Matrices are rounded to the dtype of x."""
    x, bands, weight, added = x.contiguous(), bands.to(x.dtype), weight.to(x.dtype), added.contiguous()
    y = _shape(x, affine, bands, weight, added)
    frames, (count, wide), (width, channels) = x.shape[0] * x.shape[1], bands.shape, weight.shape
    programs = min(frames, parts_of(frames, 1, x.device))

    def cost() -> Cost:
        matrices = bands, weight, added
        flop = 2 * frames * (bands.numel() * channels + count * weight.numel())
        moved = size(x, y)
        l2 = moved + programs * size(*matrices)
        return Cost((frames / max(programs, 1),), flop, l2_bytes=l2, dram_bytes=moved + size(*matrices))

    launch(
        band_map_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_x=x,
        p_affine=added if affine is None else affine.contiguous(),
        p_bands=bands.contiguous(),
        p_weight=weight.contiguous(),
        p_added=added,
        p_y=y,
        frames=frames,
        programs=programs,
        M=wide,
        C=channels,
        N=count,
        W=width,
        ROWS=max(64, count) if warpgroups(x.device) else count,  # warpgroups take 64 rows
        ACTIVE=affine is not None,
        PRECISION=dot_precision(x),
    )
    return y


def _shape(x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], bands.shape[0], weight.shape[0])


band_map_operator = operator("band_map", launch_band_map, _shape)


def band_map(
    x: Tensor, affine: Tensor | None, bands: Tensor, weight: Tensor, added: Tensor, forked: bool = False
) -> Tensor | tuple[Tensor, ...]:
    call = FORKED["band_map"] if forked else band_map_operator
    return call(x.to(autocast_dtype(x)), affine, bands, weight, added)
