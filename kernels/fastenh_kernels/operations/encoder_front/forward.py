"""log1p|X| and the first 3x3 convolution, stride 2 along frequency, walking along time.

A program holds the weights and a tile of (clip, band) rows. It computes the three features of a row once a frame and
adds them to the sums of three output frames. The spectrum of a frame is read from DRAM once; neighbouring bands share
it in the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, chunk_of, launch, size
from fastenh_kernels.shared.operators import operator
from fastenh_kernels.shared.rounding import relu

_ROWS, _WARPS = 128, 4  # of a program


@triton.jit
def feature(p_x, m):
    """log(1 + |x|) of [M] interleaved complex values."""
    b_re = tl.load(p_x, mask=m, other=0.0)
    b_im = tl.load(p_x + 1, mask=m, other=0.0)
    b_magnitude = tl.sqrt(b_re * b_re + b_im * b_im)
    # log(1 + m) loses the digits of a small m: its series there (error below m^5 / 5)
    b_series = b_magnitude * (1 - b_magnitude * (0.5 - b_magnitude * (1.0 / 3 - b_magnitude * 0.25)))
    return tl.where(b_magnitude < 0.01, b_series, tl.log(1.0 + b_magnitude))[:, None]


@triton.jit
def _weights(p_weight, o_c, tap: tl.constexpr):
    """Three [1, C]: the frequency taps of a time tap."""
    b_low = tl.load(p_weight + o_c * 9 + tap).to(tl.float32)[None, :]
    b_mid = tl.load(p_weight + o_c * 9 + 3 + tap).to(tl.float32)[None, :]
    b_high = tl.load(p_weight + o_c * 9 + 6 + tap).to(tl.float32)[None, :]
    return b_low, b_mid, b_high


@triton.jit(do_not_specialize=["rows", "frames", "chunk", "tiles"])
def encoder_front_kernel(
    p_spectrum,  # (B, bins, T, 2) by strides
    p_weight,  # (C, 3 frequency taps, 3 time taps)
    p_bias,  # (C,)
    p_out,  # (B, T, bands, C), contiguous
    rows,  # B * bands
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
    RELU: tl.constexpr,
):
    first = (tl.program_id(0) // tiles).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, frames)
    o_row = tl.program_id(0) % tiles * M + tl.arange(0, M)
    o_b, o_band = (o_row // BANDS).to(tl.int64), o_row % BANDS
    o_c = tl.arange(0, C)
    b_bias = tl.load(p_bias + o_c).to(tl.float32)[None, :]
    b_before0, b_before1, b_before2 = _weights(p_weight, o_c, 0)
    b_own0, b_own1, b_own2 = _weights(p_weight, o_c, 1)
    b_behind0, b_behind1, b_behind2 = _weights(p_weight, o_c, 2)
    p_x = p_spectrum + o_b * s_b + 2 * o_band.to(tl.int64) * s_f
    p_y = p_out + (o_b * frames * (BANDS * C) + o_band * C)[:, None] + o_c[None, :]
    m_rows = o_row < rows
    dtype: tl.constexpr = p_out.dtype.element_ty
    b_out = tl.zeros([M, C], tl.float32) + b_bias  # of the frame before t
    b_next = b_out  # of frame t
    for t in tl.range(first - 1, last + 1):
        m = m_rows & (t >= 0) & (t < frames)
        p_t = p_x + t * s_t
        b_0 = feature(p_t - s_f, m & (o_band > 0))  # [M, 1]
        b_1 = feature(p_t, m)
        b_2 = feature(p_t + s_f, m & (2 * o_band + 1 < BINS))
        b_out += b_0 * b_behind0 + b_1 * b_behind1 + b_2 * b_behind2
        b_y = relu(b_out, dtype) if RELU else b_out.to(dtype)
        tl.store(p_y + (t - 1) * (BANDS * C), b_y, mask=(m_rows & (t > first))[:, None])
        b_out = b_next + b_0 * b_own0 + b_1 * b_own1 + b_2 * b_own2
        b_next = b_0 * b_before0 + b_1 * b_before1 + b_2 * b_before2 + b_bias


def launch_encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    """The spectrum by any strides; ``dtype`` is that of the result, to which the weight is rounded."""
    batch, bins, frames = spectrum.shape
    channels = weight.shape[0]
    pairs = torch.view_as_real(spectrum)
    out = _shapes(spectrum, weight, bias, relu, dtype)
    bands = out.shape[2]
    tiles = triton.cdiv(batch * bands, _ROWS)
    chunk = chunk_of(frames, tiles, spectrum.device)
    chunks = triton.cdiv(frames, chunk)

    def cost() -> Cost:  # a row reads three bins of a frame, two of them its own
        l2 = 1.5 * size(spectrum) * (frames + 2 * chunks) / max(frames, 1) + size(out)
        return Cost(((frames + 2 * chunks) / max(chunks, 1),), flop=0, l2_bytes=l2, dram_bytes=size(spectrum, out))

    launch(
        encoder_front_kernel,
        tiles * chunks,
        cost,
        num_warps=_WARPS,
        num_stages=1,
        p_spectrum=pairs,
        p_weight=weight.to(dtype).contiguous(),
        p_bias=bias,
        p_out=out,
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
        M=_ROWS,
        RELU=relu,
    )
    return out


def _shapes(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool, dtype: torch.dtype) -> Tensor:
    batch, bins, frames = spectrum.shape
    shape = (batch, frames, (bins + 1) // 2, weight.shape[0])
    return torch.empty(shape, dtype=dtype, device=spectrum.device)


encoder_front_operator = operator("encoder_front", launch_encoder_front, _shapes)


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    return encoder_front_operator(spectrum, weight, bias, relu, autocast_dtype(weight))
