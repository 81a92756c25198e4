"""The encoder behind the first convolution in one launch: a program holds a frame, whose bands need no other frame."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.bands import convolve_bands, matrix_of, neighbours_of, three_taps
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size, warpgroups
from fastenh_kernels.shared.norm import row_of
from fastenh_kernels.shared.operators import like, operator
from fastenh_kernels.shared.rows import described, has_descriptors


@triton.jit(do_not_specialize=["frames", "programs"])
def band_encoder_kernel(
    p_x,  # (frames, M, C), contiguous
    p_weight0,  # (C, C, 3)
    p_bias0,  # (C,)
    p_weight1,
    p_bias1,
    p_bands,  # (N, M)
    p_enter,  # (W, C)
    p_enter_bias,  # (W,)
    p_positions,  # (N, W)
    p_y,  # (frames, N, W)
    p_out0,  # as x
    p_out1,  # as x, or its descriptor
    frames,
    programs,
    M: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,  # N or more, what is behind N is zero
    PRECISION: tl.constexpr,
):
    o_c, o_w, o_n = tl.arange(0, C), tl.arange(0, W), tl.arange(0, ROWS)
    m_n = o_n[:, None] < N
    taps0, taps1 = three_taps(p_weight0, p_bias0, C), three_taps(p_weight1, p_bias1, C)
    b_bands = tl.load(p_bands + o_n[:, None] * M + tl.arange(0, M)[None, :], mask=m_n, other=0.0)
    b_enter = matrix_of(p_enter, W, C, C)
    b_added = tl.load(p_positions + o_n[:, None] * W + o_w[None, :], mask=m_n, other=0.0).to(tl.float32)
    b_added += row_of(p_enter_bias, o_w)
    o_x = tl.arange(0, M)[:, None] * C + o_c[None, :]
    o_y = o_n[:, None] * W + o_w[None, :]
    for t in tl.range(tl.program_id(0).to(tl.int64), frames, programs):
        p_frame = p_x + t * (M * C)
        b_lower, b_upper = neighbours_of(p_frame, True, M, C)
        b_x = convolve_bands(tl.load(p_frame + o_x), b_lower, b_upper, taps0, PRECISION)
        p_frame = p_out0 + t * (M * C)
        tl.store(p_frame + o_x, b_x)
        tl.debug_barrier()  # the neighbours of what the threads of this program have just written
        b_lower, b_upper = neighbours_of(p_frame, True, M, C)
        b_x = convolve_bands(b_x, b_lower, b_upper, taps1, PRECISION)
        if DESCRIBED:
            p_out1.store([tl.cast(t * M, tl.int32), 0], b_x)
        else:
            tl.store(p_out1 + t * (M * C) + o_x, b_x)
        b_z = tl.dot(b_bands, b_x, input_precision=PRECISION).to(p_x.dtype.element_ty)  # [ROWS, C]
        b_y = tl.dot(b_z, b_enter, b_added, input_precision=PRECISION)
        tl.store(p_y + t * (N * W) + o_y, b_y.to(p_y.dtype.element_ty), mask=m_n)


def launch_band_encoder(x: Tensor, convolutions: Sequence[Tensor], bands: Sequence[Tensor]) -> list[Tensor]:
    """Matrices in the dtype of x."""
    x = x.contiguous()
    y, out0, out1 = _shapes(x, convolutions, bands)
    to_bands, enter, enter_bias, positions = (tensor.contiguous() for tensor in bands)
    weight0, bias0, weight1, bias1 = (tensor.contiguous() for tensor in convolutions)
    frames = x.shape[0] * x.shape[1]
    programs = min(frames, 4 * processors(x.device))
    descriptors = has_descriptors(out1)

    def cost() -> Cost:
        matrices = weight0, weight1, to_bands, enter
        taken = x.shape[2] * (weight0.numel() + weight1.numel())
        flop = 2 * frames * (taken + to_bands.numel() * x.shape[3] + to_bands.shape[0] * enter.numel())
        moved = size(x, y, out0, out1)
        loops = (frames / max(programs, 1),)
        l2 = moved + size(out0) + programs * size(*matrices)  # the first result comes back for the second convolution
        return Cost(loops, flop, l2_bytes=l2, dram_bytes=moved + size(*matrices))

    launch(
        band_encoder_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_x=x,
        p_weight0=weight0,
        p_bias0=bias0,
        p_weight1=weight1,
        p_bias1=bias1,
        p_bands=to_bands,
        p_enter=enter,
        p_enter_bias=enter_bias,
        p_positions=positions,
        p_y=y,
        p_out0=out0,
        p_out1=described(out1, x.shape[2], x.shape[3], descriptors),
        DESCRIBED=descriptors,
        frames=frames,
        programs=programs,
        M=x.shape[2],
        C=x.shape[3],
        N=to_bands.shape[0],
        W=enter.shape[0],
        ROWS=max(64, to_bands.shape[0]) if warpgroups(x.device) else to_bands.shape[0],  # warpgroups take 64 rows
        PRECISION=dot_precision(x),
    )
    return [y, out0, out1]


def _shapes(x: Tensor, convolutions: Sequence[Tensor], bands: Sequence[Tensor]) -> list[Tensor]:
    y = x.new_empty(*x.shape[:2], bands[0].shape[0], bands[1].shape[0])
    return [y, like(x), like(x)]


band_encoder_operator = operator("band_encoder", launch_band_encoder, _shapes)


def band_encoder(x: Tensor, convolutions: tuple[Tensor, ...], bands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = x.to(autocast_dtype(x))
    to_bands, enter, enter_bias, positions = bands
    weights = [tensor.to(x.dtype) if tensor.ndim == 3 else tensor for tensor in convolutions]
    return tuple(band_encoder_operator(x, weights, [to_bands.to(x.dtype), enter.to(x.dtype), enter_bias, positions]))
