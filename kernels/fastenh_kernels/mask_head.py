"""From the decoder's commuted features to the enhanced spectrum, in one pass.

A program takes 64 bins of one frame: for each of three frequency taps it reads the two bands between which the bin
lies, interpolates, and adds; then scale, shift, ReLU, the dot product with 64 weights, sigmoid, and the product with
the spectrum. The upsampled tensor (B, 64, 257, T) is never made: a frame costs 25 kB of z and 4 kB of spectrum (16 bit,
64 channels).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.launch import launch

_BINS = 64  # a program
_WARPS = 8


@triton.jit(do_not_specialize=["frames", "blocks"])
def mask_head_kernel(
    p_z,  # (B, T, F, 3, C), contiguous
    p_scale,  # (C,)
    p_shift,  # (C,)
    p_weight,  # (C,)
    p_bias,  # (1,)
    p_spectrum,  # (B, bins, T, 2) by strides
    p_out,  # (B, bins, T, 2), contiguous
    frames,
    blocks,
    s_b,
    s_f,
    s_t,
    BANDS: tl.constexpr,
    BINS: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
):
    i_block = tl.program_id(0) % blocks
    i_frame = (tl.program_id(0) // blocks).to(tl.int64)
    i_b, i_t = i_frame // frames, i_frame % frames
    o_f = i_block * N + tl.arange(0, N)
    o_c = tl.arange(0, C)
    p_z += i_frame * (BANDS * 3 * C)
    b_sum = tl.zeros([N, C], tl.float32)
    for tap in tl.static_range(3):
        o_row = o_f + (tap - 1)
        m_row = (o_row >= 0) & (o_row < BINS)
        # (row + 1/2) BANDS / BINS - 1/2 as a fraction of integers: its float32 form loses six bits of the share
        o_position = tl.maximum((2 * o_row + 1) * BANDS - BINS, 0)
        o_low = o_position // (2 * BINS)
        o_high = tl.minimum(o_low + 1, BANDS - 1)
        b_share = (o_position - o_low * (2 * BINS)).to(tl.float32) / (2 * BINS)
        p_tap = p_z + tap * C + o_c[None, :]
        b_low = tl.load(p_tap + o_low[:, None] * (3 * C), mask=m_row[:, None], other=0.0).to(tl.float32)  # [N, C]
        b_high = tl.load(p_tap + o_high[:, None] * (3 * C), mask=m_row[:, None], other=0.0).to(tl.float32)
        b_sum += b_low + (b_high - b_low) * b_share[:, None]
    b_scale = tl.load(p_scale + o_c).to(tl.float32)
    b_shift = tl.load(p_shift + o_c).to(tl.float32)
    b_weight = tl.load(p_weight + o_c).to(tl.float32)
    b_hidden = tl.maximum(b_sum * b_scale[None, :] + b_shift[None, :], 0.0)
    b_logit = tl.sum(b_hidden * b_weight[None, :], 1) + tl.load(p_bias).to(tl.float32)
    b_mask = 1.0 / (1.0 + tl.exp(-b_logit))
    m_f = o_f < BINS
    o_spectrum = i_b * s_b + o_f.to(tl.int64) * s_f + i_t * s_t
    o_out = ((i_b * BINS + o_f) * frames + i_t) * 2
    b_re = tl.load(p_spectrum + o_spectrum, mask=m_f, other=0.0)
    b_im = tl.load(p_spectrum + o_spectrum + 1, mask=m_f, other=0.0)
    tl.store(p_out + o_out, b_re * b_mask, mask=m_f)
    tl.store(p_out + o_out + 1, b_im * b_mask, mask=m_f)


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    """See ``fastenh.ops.mask_head``. z must hold a power of two of channels; the result is contiguous.

    Raises ``ValueError`` for other channel counts.
    """
    batch, frames, bands, _, channels = z.shape
    if channels & (channels - 1):
        raise ValueError(f"{channels} channels: the kernel takes a power of two")
    bins = spectrum.shape[1]
    out = torch.empty(spectrum.shape, dtype=spectrum.dtype, device=spectrum.device)
    pairs = torch.view_as_real(spectrum)
    blocks = triton.cdiv(bins, _BINS)
    arguments = {
        "p_z": z.contiguous(),
        "p_scale": scale,
        "p_shift": shift,
        "p_weight": weight.reshape(-1),
        "p_bias": bias,
        "p_spectrum": pairs,
        "p_out": torch.view_as_real(out),
        "frames": frames,
        "blocks": blocks,
        **dict(zip(("s_b", "s_f", "s_t"), pairs.stride()[:3], strict=True)),
        "BANDS": bands,
        "BINS": bins,
        "C": channels,
        "N": _BINS,
    }
    launch(mask_head_kernel, batch * frames * blocks, arguments, num_warps=_WARPS)
    return out
