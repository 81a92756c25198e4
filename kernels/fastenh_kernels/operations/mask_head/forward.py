"""From the decoder's commuted features to the enhanced spectrum, in one pass.

Upsampling and the sum over the frequency taps are one linear map along frequency, (bins, 3 x bands), with at most six
entries a row: 64 neighbouring bins draw on 64 neighbouring rows of z. So a program keeps a 64 x 64 block of the map on
chip, takes a frame after the other, multiplies its 64 x 64 block of z, and goes on in registers: scale, shift, ReLU,
the dot product with 64 weights, sigmoid, the product with the spectrum. The upsampled tensor (B, 64, 257, T) is never
made. The entries of the map have the dtype of z.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import Cost, chunk_of, dot_precision, launch, size
from fastenh_kernels.shared.operators import operator
from fastenh_kernels.shared.upsampling import upsampling_blocks

_BINS = {2: 64, 4: 32}  # bytes of a value: bins of a program


@triton.jit(do_not_specialize=["frames", "total", "blocks", "chunk"])
def mask_head_kernel(
    p_z,  # (B, T, 3 * BANDS, C), contiguous
    p_map,  # (blocks, N, K)
    p_starts,  # (blocks,), first row of z of a block
    p_scale,  # (C,)
    p_shift,  # (C,)
    p_weight,  # (C,)
    p_bias,  # (1,)
    p_spectrum,  # (B, bins, T, 2) by strides
    p_out,  # the same
    frames,
    total,  # B * T
    blocks,
    chunk,  # frames of a program
    s_b,
    s_f,
    s_t,
    s_out_b,
    s_out_f,
    s_out_t,
    ROWS: tl.constexpr,  # 3 * BANDS
    BINS: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_block = tl.program_id(0) % blocks
    first = (tl.program_id(0) // blocks).to(tl.int64) * chunk
    o_f = i_block * N + tl.arange(0, N)
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, K)
    o_row = tl.load(p_starts + i_block) + o_k
    b_map = tl.load(p_map + o_f[:, None] * K + o_k[None, :])  # [N, K]
    b_scale = tl.load(p_scale + o_c).to(tl.float32)[None, :]
    b_shift = tl.load(p_shift + o_c).to(tl.float32)[None, :]
    b_weight = tl.load(p_weight + o_c).to(tl.float32)[None, :]
    b_bias = tl.load(p_bias).to(tl.float32)
    p_rows = p_z + o_row[:, None] * C + o_c[None, :]
    p_x = p_spectrum + o_f.to(tl.int64) * s_f
    p_y = p_out + o_f.to(tl.int64) * s_out_f
    for i_frame in tl.range(first, tl.minimum(first + chunk, total)):
        p_frame = p_rows + i_frame * (ROWS * C)
        b_z = tl.load(p_frame, mask=(o_row < ROWS)[:, None], other=0.0)  # [K, C]
        b_up = tl.dot(b_map, b_z, input_precision=PRECISION)  # [N, C]
        b_hidden = tl.maximum(b_up * b_scale + b_shift, 0.0)
        b_logit = tl.sum(b_hidden * b_weight, 1) + b_bias
        b_mask = 1.0 / (1.0 + tl.exp(-b_logit))
        o_x = i_frame // frames * s_b + i_frame % frames * s_t
        b_re = tl.load(p_x + o_x, mask=o_f < BINS, other=0.0)
        b_im = tl.load(p_x + o_x + 1, mask=o_f < BINS, other=0.0)
        o_y = i_frame // frames * s_out_b + i_frame % frames * s_out_t
        tl.store(p_y + o_y, b_re * b_mask, mask=o_f < BINS)
        tl.store(p_y + o_y + 1, b_im * b_mask, mask=o_f < BINS)


def launch_mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    """The spectrum by any strides; the result has the same where the spectrum is dense."""
    batch, frames, bands, taps, channels = z.shape
    bins = spectrum.shape[1]
    out = _shapes(z, scale, shift, weight, bias, spectrum)
    pairs, out_pairs = torch.view_as_real(spectrum), torch.view_as_real(out)
    table, starts = upsampling_blocks(bands, bins, _BINS[z.element_size()], z.dtype, z.device)
    blocks, block, inner = table.shape
    chunk = chunk_of(batch * frames, blocks, z.device)
    groups = triton.cdiv(batch * frames, chunk)

    def cost() -> Cost:  # blocks overlap in z
        flop = 2 * batch * frames * bins * 6 * channels  # of the entries that are not zero
        read = batch * frames * blocks * inner * channels * z.element_size()
        l2 = read + groups * size(table) + size(spectrum, out)
        return Cost((min(chunk, batch * frames),), flop, l2_bytes=l2, dram_bytes=size(z, spectrum, out))

    launch(
        mask_head_kernel,
        blocks * groups,
        cost,
        num_warps=4,
        p_z=z.contiguous(),
        p_map=table,
        p_starts=starts,
        p_scale=scale,
        p_shift=shift,
        p_weight=weight.reshape(-1),
        p_bias=bias,
        p_spectrum=pairs,
        p_out=out_pairs,
        frames=frames,
        total=batch * frames,
        blocks=blocks,
        chunk=chunk,
        s_b=pairs.stride(0),
        s_f=pairs.stride(1),
        s_t=pairs.stride(2),
        s_out_b=out_pairs.stride(0),
        s_out_f=out_pairs.stride(1),
        s_out_t=out_pairs.stride(2),
        ROWS=taps * bands,
        BINS=bins,
        C=channels,
        N=block,
        K=inner,
        PRECISION=dot_precision(z),
    )
    return out


def _shapes(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    return torch.empty_like(spectrum)


mask_head = operator("mask_head", launch_mask_head, _shapes)
