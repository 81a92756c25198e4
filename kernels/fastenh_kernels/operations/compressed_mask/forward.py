"""The transposed convolution as products of a group of four bins, as a walk along time, and the mask in registers.

Four bins lie under three bands: their own, and half of each neighbour. With v the compressed pair (re, im) of a bin, s
the same with its parts exchanged and m the mask, ``m v`` is ``(m_re, m_re) v + (-m_im, m_im) s``: a program makes both
factors as one product of 16 columns, and loads v twice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.bands import log2, neighbours_of
from fastenh_kernels.shared.compression import EPS, as_frames
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, chunk_of, dot_precision, launch, size
from fastenh_kernels.shared.operators import operator

_BANDS = 64


@triton.jit
def mask_matrix(p_weight, j, BAND: tl.constexpr, C: tl.constexpr):
    """[C, 16] for the band BAND (-1, 0, 1) from a group's own: factors of v, then of s, for each part of 4 bins."""
    o = tl.arange(0, 16)
    o_factor, o_bin, o_part = o // 8, o // 2 % 4, o % 2
    o_k = o_bin + 2 - 4 * BAND  # of the 8 bins under that band
    m = (o_k >= 0) & (o_k < 8)
    p = p_weight + tl.arange(0, C)[:, None] * 48 + (o_factor * 24 + o_k * 3 + j)[None, :]
    b = tl.load(p, mask=m[None, :], other=0.0)
    return tl.where(((o_factor == 1) & (o_part == 0))[None, :], -b, b)


@triton.jit
def bands_of(p_x, t, frames, C: tl.constexpr):
    """Three [64, C] of frame t, zeros outside of the clip: each band's lower neighbour, itself and the upper one."""
    p_x += t * (64 * C)
    m = (t >= 0) & (t < frames)
    o = tl.arange(0, 64)[:, None] * C + tl.arange(0, C)[None, :]
    b_lower, b_upper = neighbours_of(p_x, m, 64, C)
    return b_lower, tl.load(p_x + o, mask=(o >= 0) & m, other=0.0), b_upper


@triton.jit
def through_mask(bands, b_mask, matrices, PRECISION: tl.constexpr):
    """b_mask [64, 16] and what a frame adds to it; ``bands`` as ``bands_of`` gives them."""
    b_mask = tl.dot(bands[0], matrices[0], b_mask, input_precision=PRECISION)
    b_mask = tl.dot(bands[1], matrices[1], b_mask, input_precision=PRECISION)
    return tl.dot(bands[2], matrices[2], b_mask, input_precision=PRECISION)


@triton.jit
def three_bands(p_weight, j, C: tl.constexpr):
    return mask_matrix(p_weight, j, -1, C), mask_matrix(p_weight, j, 0, C), mask_matrix(p_weight, j, 1, C)


@triton.jit(do_not_specialize=["frames", "chunk", "chunks"])
def compressed_mask_kernel(
    p_x,  # (B, T, 64, C), contiguous
    p_weight,  # (C, 2, 8, 3)
    p_bias,  # (2,)
    p_spectrum,  # (B, T, 257, 2), contiguous
    p_out,  # the same
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
    p_clip = p_x + clip * frames * (64 * C)
    latest, own, earliest = three_bands(p_weight, 0, C), three_bands(p_weight, 1, C), three_bands(p_weight, 2, C)
    o = tl.arange(0, 16)
    b_bias = tl.load(p_bias + o // 8).to(tl.float32)
    b_bias = tl.where((o >= 8) & (o % 2 == 0), -b_bias, b_bias)[None, :]
    o_pair = 8 * tl.arange(0, 64)[:, None] + tl.arange(0, 8)[None, :]
    o_swapped = 8 * tl.arange(0, 64)[:, None] + (tl.arange(0, 8) ^ 1)[None, :]
    b_bias = tl.zeros([64, 16], tl.float32) + b_bias
    bands = bands_of(p_clip, first + AHEAD - 2, frames, C)
    b_mask = through_mask(bands, b_bias, earliest, PRECISION)  # of frame t, without what frame t + AHEAD adds
    bands = bands_of(p_clip, first + AHEAD - 1, frames, C)
    b_mask = through_mask(bands, b_mask, own, PRECISION)
    b_next = through_mask(bands, b_bias, earliest, PRECISION)  # of frame t + 1
    for t in tl.range(first, last):
        bands = bands_of(p_clip, t + AHEAD, frames, C)
        b_mask = through_mask(bands, b_mask, latest, PRECISION)
        b_re, b_im = tl.split(tl.permute(tl.reshape(b_mask, (64, 2, 8)), (0, 2, 1)))  # [64, 8] each
        o_frame = (clip * frames + t) * 514
        b_v = tl.load(p_spectrum + o_frame + o_pair)
        b_s = tl.load(p_spectrum + o_frame + o_swapped)
        b_scale = tl.exp2(log2(b_v * b_v + b_s * b_s + EPS) * ((POWER - 1) / 2))
        b_v, b_s = b_v * b_scale, b_s * b_scale
        b_y, b_other = b_re * b_v + b_im * b_s, b_re * b_s - b_im * b_v
        b_y *= tl.exp2(log2(b_y * b_y + b_other * b_other + EPS) * ((1 / POWER - 1) / 2))
        tl.store(p_out + o_frame + o_pair, b_y)
        tl.store(p_out + o_frame + 512 + tl.arange(0, 2), tl.zeros([2], tl.float32))
        b_mask = through_mask(bands, b_next, own, PRECISION)
        b_next = through_mask(bands, b_bias, earliest, PRECISION)


def launch_compressed_mask(
    x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int
) -> Tensor:
    """The weight is rounded to the dtype of x."""
    x, weight = x.contiguous(), weight.to(x.dtype).contiguous()
    batch, frames, _, channels = x.shape
    pairs = as_frames(spectrum)
    out = torch.empty_like(pairs)
    chunk = chunk_of(frames, batch, x.device, least=4)
    chunks = triton.cdiv(frames, chunk)

    def cost() -> Cost:
        flop = 2 * batch * frames * _BANDS * weight.numel()
        rows = size(x) * (1 + 2 * chunks / max(frames, 1))
        l2 = rows + 2 * size(spectrum) + size(out) + batch * chunks * size(weight)
        return Cost((frames / max(chunks, 1),), flop, l2_bytes=l2, dram_bytes=size(x, spectrum, out, weight))

    launch(
        compressed_mask_kernel,
        batch * chunks,
        cost,
        num_warps=4,
        num_stages=1,
        p_x=x,
        p_weight=weight,
        p_bias=bias.contiguous(),
        p_spectrum=pairs,
        p_out=out,
        frames=frames,
        chunk=chunk,
        chunks=chunks,
        C=channels,
        AHEAD=ahead,
        POWER=power,
        EPS=EPS,
        PRECISION=dot_precision(x),
    )
    return torch.view_as_complex(out).transpose(1, 2)


def _shape(x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int) -> Tensor:
    batch, bins, frames = spectrum.shape
    return spectrum.new_empty(batch, frames, bins).transpose(1, 2)


compressed_mask_operator = operator("compressed_mask", launch_compressed_mask, _shape)


def compressed_mask(x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int) -> Tensor:
    return compressed_mask_operator(x.to(autocast_dtype(x)), weight, bias, spectrum, power, ahead)
