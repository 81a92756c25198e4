"""The first convolution as a product of 32 numbers a band and frame, as a walk along time: a frame is compressed once,
and adds its part to the three frames that need it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.bands import log2, silu_of_twice
from fastenh_kernels.shared.compression import EPS, as_frames
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, chunk_of, dot_precision, launch, size
from fastenh_kernels.shared.norm import row_of
from fastenh_kernels.shared.operators import operator

_BANDS, _BINS, _STRIDE = 64, 8, 4


@triton.jit
def features_of(p_frame, m_frame, POWER: tl.constexpr, EPS: tl.constexpr):
    """[64 bands, 32]: of the 8 bins of each band the real part, the magnitude, the imaginary part and nothing."""
    o = (4 * tl.arange(0, 64)[:, None] - 2) * 2 + tl.arange(0, 16)[None, :]
    m = (o >= 0) & (o < 512) & m_frame
    b_pairs = tl.reshape(tl.load(p_frame + o, mask=m, other=0.0), (64, 8, 2))
    b_log = log2(tl.sum(b_pairs * b_pairs, 2) + EPS)  # [64, 8]
    b_pairs *= tl.exp2(b_log * ((POWER - 1) / 2))[:, :, None]
    o_bin = 4 * tl.arange(0, 64)[:, None] - 2 + tl.arange(0, 8)[None, :]
    m_bin = (o_bin >= 0) & (o_bin < 256) & m_frame
    b_magnitude = tl.where(m_bin, tl.exp2(b_log * (POWER / 2)), 0.0)
    o_pair = tl.arange(0, 2)[None, None, :]
    b_magnitude = tl.where(o_pair == 0, b_magnitude[:, :, None], 0.0)
    return tl.reshape(tl.join(b_pairs, b_magnitude), (64, 32))


@triton.jit
def front_matrix(p_weight, j, C: tl.constexpr):
    """[32, C] for the features of a frame, of the weight (C, 3, 8, 3)."""
    o = tl.arange(0, 32)
    o_bin, o_part, o_kind = o // 4, o // 2 % 2, o % 2
    o_feature = tl.where(o_kind == 0, o_part, 2)
    m = (o_kind == 0) | (o_part == 0)
    o_k = o_feature * 24 + o_bin * 3 + j
    return tl.load(p_weight + tl.arange(0, C)[None, :] * 72 + o_k[:, None], mask=m[:, None], other=0.0)


@triton.jit(do_not_specialize=["frames", "chunk", "chunks"])
def compressed_front_kernel(
    p_spectrum,  # (B, T, 257, 2), contiguous
    p_weight,  # (C, 3, 8, 3)
    p_bias,  # (C,)
    p_y,  # (B, T, 64, C)
    frames,
    chunk,
    chunks,
    C: tl.constexpr,
    AHEAD: tl.constexpr,
    POWER: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    clip = (tl.program_id(0) // chunks).to(tl.int64)
    first = tl.program_id(0) % chunks * chunk
    last = tl.minimum(first + chunk, frames)
    p_clip = p_spectrum + clip * frames * 514
    dtype = p_weight.dtype.element_ty
    # halves, as SiLU takes them
    b_before, b_own = front_matrix(p_weight, 0, C) * 0.5, front_matrix(p_weight, 1, C) * 0.5
    b_behind = front_matrix(p_weight, 2, C) * 0.5
    b_bias = row_of(p_bias, tl.arange(0, C)) * 0.5
    o_y = tl.arange(0, 64)[:, None] * C + tl.arange(0, C)[None, :]
    t = first + AHEAD - 2
    b_x = features_of(p_clip + t * 514, (t >= 0) & (t < frames), POWER, EPS).to(dtype)
    b_y = tl.dot(b_x, b_before, input_precision=PRECISION)  # of frame t, without what frame t + AHEAD adds
    b_x = features_of(p_clip + (t + 1) * 514, (t + 1 >= 0) & (t + 1 < frames), POWER, EPS).to(dtype)
    b_y = tl.dot(b_x, b_own, b_y, input_precision=PRECISION)
    b_next = tl.dot(b_x, b_before, input_precision=PRECISION)  # of frame t + 1
    for t in tl.range(first, last):
        b_x = features_of(p_clip + (t + AHEAD) * 514, t + AHEAD < frames, POWER, EPS).to(dtype)
        b_y = tl.dot(b_x, b_behind, b_y, input_precision=PRECISION)
        p = p_y + (clip * frames + t) * (64 * C) + o_y
        tl.store(p, silu_of_twice(b_y + b_bias, dtype).to(p_y.dtype.element_ty))
        b_y = tl.dot(b_x, b_own, b_next, input_precision=PRECISION)
        b_next = tl.dot(b_x, b_before, input_precision=PRECISION)


def launch_compressed_front(spectrum: Tensor, weight: Tensor, bias: Tensor, power: float, ahead: int) -> Tensor:
    """In the dtype of the weight."""
    y = _shape(spectrum, weight, bias, power, ahead)
    batch, _, frames = spectrum.shape
    pairs = as_frames(spectrum)
    chunk = chunk_of(frames, batch, spectrum.device, least=4)
    chunks = triton.cdiv(frames, chunk)

    def cost() -> Cost:
        flop = 2 * batch * frames * _BANDS * weight.numel()
        l2 = 2 * size(spectrum) * (1 + 2 * chunks / max(frames, 1)) + batch * chunks * size(weight) + size(y)
        return Cost((frames / max(chunks, 1),), flop, l2_bytes=l2, dram_bytes=size(spectrum, weight, y))

    launch(
        compressed_front_kernel,
        batch * chunks,
        cost,
        num_warps=4,
        num_stages=1,
        p_spectrum=pairs,
        p_weight=weight.contiguous(),
        p_bias=bias.contiguous(),
        p_y=y,
        frames=frames,
        chunk=chunk,
        chunks=chunks,
        C=weight.shape[0],
        AHEAD=ahead,
        POWER=power,
        EPS=EPS,
        PRECISION=dot_precision(weight),
    )
    return y


def _shape(spectrum: Tensor, weight: Tensor, bias: Tensor, power: float, ahead: int) -> Tensor:
    return weight.new_empty(spectrum.shape[0], spectrum.shape[2], _BANDS, weight.shape[0])


compressed_front_operator = operator("compressed_front", launch_compressed_front, _shape)


def compressed_front(spectrum: Tensor, weight: Tensor, bias: Tensor, power: float, ahead: int) -> Tensor:
    return compressed_front_operator(spectrum, weight.to(autocast_dtype(weight)), bias, power, ahead)
