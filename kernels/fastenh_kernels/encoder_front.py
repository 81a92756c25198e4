"""log1p|X| and the first 3x3 convolution, stride 2 along frequency: nine magnitudes in registers for each output.

The spectrum is read nine times over, from the caches: neighbouring outputs share all but a column of it. Of DRAM
traffic there is the spectrum once and the output once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.launch import launch

_BANDS = 32  # a program, of one frame


@triton.jit(do_not_specialize=["frames", "blocks"])
def encoder_front_kernel(
    p_spectrum,  # (B, bins, T, 2) by strides
    p_weight,  # (C, 3 frequency taps, 3 time taps)
    p_bias,  # (C,)
    p_out,  # (B, T, bands, C), contiguous
    frames,
    blocks,
    s_b,
    s_f,
    s_t,
    BINS: tl.constexpr,
    BANDS: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
):
    i_block = tl.program_id(0) % blocks
    i_frame = (tl.program_id(0) // blocks).to(tl.int64)
    i_b, i_t = i_frame // frames, i_frame % frames
    o_band = i_block * N + tl.arange(0, N)
    o_c = tl.arange(0, C)
    b_out = tl.zeros([N, C], tl.float32) + tl.load(p_bias + o_c).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        o_f = 2 * o_band + (tap // 3 - 1)
        i_frame_of_tap = i_t + (tap % 3 - 1)
        m_f = (o_f >= 0) & (o_f < BINS) & (i_frame_of_tap >= 0) & (i_frame_of_tap < frames)
        p_x = p_spectrum + i_b * s_b + o_f.to(tl.int64) * s_f + i_frame_of_tap * s_t
        b_re = tl.load(p_x, mask=m_f, other=0.0)
        b_im = tl.load(p_x + 1, mask=m_f, other=0.0)
        b_power = b_re * b_re + b_im * b_im
        b_magnitude = tl.sqrt(b_power)
        # log(1 + m) loses the digits of a small m: its series there (error below m^5 / 5)
        b_series = b_magnitude * (1 - b_magnitude * (0.5 - b_magnitude * (1.0 / 3 - b_magnitude * 0.25)))
        b_feature = tl.where(b_magnitude < 0.01, b_series, tl.log(1.0 + b_magnitude))  # [N]
        b_weight = tl.load(p_weight + o_c * 9 + tap).to(tl.float32)  # [C]
        b_out += b_feature[:, None] * b_weight[None, :]
    p_o = p_out + (i_frame * BANDS + o_band[:, None]) * C + o_c[None, :]
    tl.store(p_o, b_out.to(p_out.dtype.element_ty), mask=o_band[:, None] < BANDS)


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See ``fastenh.ops.encoder_front``; the result has the dtype of ``weight``.

    Raises ``ValueError`` unless the channels are a power of two.
    """
    batch, bins, frames = spectrum.shape
    channels = weight.shape[0]
    if channels & (channels - 1):
        raise ValueError(f"{channels} channels: the kernel takes a power of two")
    bands = (bins + 1) // 2
    pairs = torch.view_as_real(spectrum)
    out = torch.empty(batch, frames, bands, channels, dtype=weight.dtype, device=spectrum.device)
    blocks = triton.cdiv(bands, _BANDS)
    arguments = {
        "p_spectrum": pairs,
        "p_weight": weight.contiguous(),
        "p_bias": bias,
        "p_out": out,
        "frames": frames,
        "blocks": blocks,
        **dict(zip(("s_b", "s_f", "s_t"), pairs.stride()[:3], strict=True)),
        "BINS": bins,
        "BANDS": bands,
        "C": channels,
        "N": _BANDS,
    }
    launch(encoder_front_kernel, batch * frames * blocks, arguments, num_warps=4)
    return out
