"""The decoder before the mask in one launch: a program holds a frame, whose bands need no other frame."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.bands import convolve_bands, exchanged, matrix_of, silu_of_twice, three_taps
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, processors, size
from fastenh_kernels.shared.norm import row_of
from fastenh_kernels.shared.operators import like, operator
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows


@triton.jit
def mixing(p_weight, p_bias, C: tl.constexpr):
    """Halves of the matrices [C, C] for what is there and for the skip, and of the bias [1, C]."""
    b_own, b_skip = matrix_of(p_weight, C, C, 2 * C), matrix_of(p_weight + C, C, C, 2 * C)
    return b_own * 0.5, b_skip * 0.5, row_of(p_bias, tl.arange(0, C)) * 0.5


@triton.jit
def mixed(b_x, b_skip, mix, PRECISION: tl.constexpr):
    b_x = tl.dot(b_x, mix[0], input_precision=PRECISION)
    return silu_of_twice(tl.dot(b_skip, mix[1], b_x, input_precision=PRECISION) + mix[2], mix[1].dtype)


@triton.jit(do_not_specialize=["frames", "programs"])
def band_decoder_kernel(
    p_y,  # (frames, N, W), contiguous, or its descriptor
    p_skip0,  # (frames, M, C), likewise
    p_skip1,
    p_skip2,
    p_leave,  # (C, W)
    p_leave_bias,  # (C,)
    p_bands,  # (M, N)
    p_mix0,  # (C, 2C)
    p_mix_bias0,  # (C,)
    p_mix1,
    p_mix_bias1,
    p_mix2,
    p_mix_bias2,
    p_weight0,  # (C, C, 3)
    p_bias0,  # (C,)
    p_weight1,
    p_bias1,
    p_out,  # (frames, M, C), or its descriptor
    frames,
    programs,
    M: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c, o_w, o_n, o_m = tl.arange(0, C), tl.arange(0, W), tl.arange(0, N), tl.arange(0, M)
    dtype = p_leave.dtype.element_ty
    taps0, taps1 = three_taps(p_weight0, p_bias0, C), three_taps(p_weight1, p_bias1, C)
    mix0, mix1, mix2 = mixing(p_mix0, p_mix_bias0, C), mixing(p_mix1, p_mix_bias1, C), mixing(p_mix2, p_mix_bias2, C)
    b_bands = tl.load(p_bands + o_m[:, None] * N + o_n[None, :])
    b_leave, b_leave_bias = matrix_of(p_leave, C, W, W), row_of(p_leave_bias, o_c)
    o_x = o_m[:, None] * C + o_c[None, :]
    for t in tl.range(tl.program_id(0).to(tl.int64), frames, programs):
        b_y = load_rows(p_y, o_n, o_w, t, 0, frames * N, W, DESCRIBED)
        b_z = tl.dot(b_y, b_leave, input_precision=PRECISION) + b_leave_bias
        b_x = tl.dot(b_bands, b_z.to(dtype), input_precision=PRECISION).to(dtype)  # [M, C]
        b_x = mixed(b_x, load_rows(p_skip0, o_m, o_c, t, 0, frames * M, C, DESCRIBED), mix0, PRECISION).to(dtype)
        b_lower, b_upper = exchanged(b_x, M, C)
        b_x = convolve_bands(b_x, b_lower, b_upper, taps0, PRECISION)
        b_x = mixed(b_x, load_rows(p_skip1, o_m, o_c, t, 0, frames * M, C, DESCRIBED), mix1, PRECISION).to(dtype)
        b_lower, b_upper = exchanged(b_x, M, C)
        b_x = convolve_bands(b_x, b_lower, b_upper, taps1, PRECISION)
        b_x = mixed(b_x, load_rows(p_skip2, o_m, o_c, t, 0, frames * M, C, DESCRIBED), mix2, PRECISION)
        if DESCRIBED:
            p_out.store([tl.cast(t * M, tl.int32), 0], b_x.to(dtype))
        else:
            tl.store(p_out + t * (M * C) + o_x, b_x.to(dtype))


def launch_band_decoder(
    y: Tensor,
    skips: Sequence[Tensor],
    bands: Sequence[Tensor],
    mixes: Sequence[Tensor],
    convolutions: Sequence[Tensor],
) -> Tensor:
    """All tensors but vectors in one dtype."""
    out = like(skips[0])
    matrices = [*bands[::2], *mixes[::2], *convolutions[::2]]
    frames = y.shape[0] * y.shape[1]
    (count, width), (wide, channels) = y.shape[2:], out.shape[2:]
    programs = min(frames, 3 * processors(y.device))
    descriptors = has_descriptors(out)

    def cost() -> Cost:
        products = sum(tensor.numel() for tensor in (*mixes[::2], *convolutions[::2]))
        flop = 2 * frames * (wide * products + count * bands[0].numel() + channels * bands[2].numel())
        moved = size(y, *skips, out)
        loops = (frames / max(programs, 1),)
        return Cost(loops, flop, l2_bytes=moved + programs * size(*matrices), dram_bytes=moved + size(*matrices))

    launch(
        band_decoder_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=2 if descriptors else 1,
        p_y=described(y.contiguous(), count, width, descriptors),
        **{f"p_skip{i}": described(t.contiguous(), wide, channels, descriptors) for i, t in enumerate(skips)},
        **{f"p_{name}": t.contiguous() for name, t in zip(("leave", "leave_bias", "bands"), bands, strict=True)},
        **{f"p_mix{i}": tensor.contiguous() for i, tensor in enumerate(mixes[::2])},
        **{f"p_mix_bias{i}": tensor.contiguous() for i, tensor in enumerate(mixes[1::2])},
        **{f"p_weight{i}": tensor.contiguous() for i, tensor in enumerate(convolutions[::2])},
        **{f"p_bias{i}": tensor.contiguous() for i, tensor in enumerate(convolutions[1::2])},
        p_out=described(out, wide, channels, descriptors),
        frames=frames,
        programs=programs,
        M=wide,
        C=channels,
        N=count,
        W=width,
        DESCRIBED=descriptors,
        PRECISION=dot_precision(y),
    )
    return out


def _shape(y: Tensor, skips: Sequence[Tensor], *_: Sequence[Tensor]) -> Tensor:
    return like(skips[0])


band_decoder_operator = operator("band_decoder", launch_band_decoder, _shape)


def band_decoder(
    y: Tensor,
    skips: tuple[Tensor, ...],
    bands: tuple[Tensor, ...],
    mixes: tuple[Tensor, ...],
    convolutions: tuple[Tensor, ...],
) -> Tensor:
    dtype = autocast_dtype(y)

    def rounded(tensors: tuple[Tensor, ...]) -> list[Tensor]:
        return [tensor.to(dtype) if tensor.ndim > 1 else tensor for tensor in tensors]

    return band_decoder_operator(y.to(dtype), *map(rounded, (skips, bands, mixes, convolutions)))
