"""The gradient of ``mask_head`` in one launch; upsampled tensor and mask are computed again, nothing is kept.

A program takes a block of bands, whose rows touch at most 64 bins of the spectrum, and a frame after the other: the
bins' upsampled values, their mask and the gradient of their logits, and from that the gradient of its own rows of z, a
product with the transposed map. Bins at the seams are computed by two programs.

With d the gradient of a logit where the unit is open, the sums of d and of d * up over clips, frames and bins give the
gradients of scale, shift and weight alike. They stand in registers, over the bins that no program before has, and leave
once a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.mask_head.forward import mask_head
from fastenh_kernels.shared.launch import Cost, chunk_of, dot_precision, launch, size, tensor_memory, warpgroups
from fastenh_kernels.shared.operators import as_dtypes_of, like, operator, single
from fastenh_kernels.shared.upsampling import band_blocks


@triton.jit
def _pairs(b):
    """[N, C] -> [N / 16, 8, C]: sums of rows r and r + 8, which a thread of a tensor-core result holds both of."""
    return tl.sum(tl.reshape(b, [b.shape[0] // 16, 2, 8, b.shape[1]]), 1)


@triton.jit(do_not_specialize=["frames", "total", "blocks", "chunk"])
def mask_head_backward_kernel(
    p_grad,  # (B, bins, T, 2) by strides
    p_z,  # (B, T, ROWS, C), contiguous
    p_up,  # (blocks, N, K)
    p_down,  # (blocks, M, N)
    p_bounds,  # (blocks, 6)
    p_scale,  # (C,)
    p_shift,  # (C,)
    p_weight,  # (C,)
    p_bias,  # (1,)
    p_spectrum,  # (B, bins, T, 2) by strides
    p_grad_z,  # as z
    p_sums,  # (programs, 2 C + 1)
    p_grad_spectrum,  # as the spectrum, by strides
    frames,
    total,  # B * T
    blocks,
    chunk,  # frames of a program
    s_grad_b,
    s_grad_f,
    s_grad_t,
    s_b,
    s_f,
    s_t,
    s_out_b,
    s_out_f,
    s_out_t,
    ROWS: tl.constexpr,  # 3 * bands
    C: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SPECTRUM: tl.constexpr,  # its gradient is asked for
    PRECISION: tl.constexpr,
):
    i_block = tl.program_id(0) % blocks
    first = (tl.program_id(0) // blocks).to(tl.int64) * chunk
    o_m, o_n, o_k, o_c = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K), tl.arange(0, C)
    p_bounds += i_block * 6
    o_row = tl.load(p_bounds) + o_k
    o_f = tl.load(p_bounds + 1) + o_n
    m_own = (o_f >= tl.load(p_bounds + 2)) & (o_f < tl.load(p_bounds + 3))
    m_f = o_f < tl.load(p_bounds + 3)
    o_out = tl.load(p_bounds + 4) + o_m
    m_out = (o_out < tl.load(p_bounds + 5))[:, None]
    b_map = tl.load(p_up + (i_block * N + o_n[:, None]) * K + o_k[None, :])  # [N, K]
    b_down = tl.load(p_down + (i_block * M + o_m[:, None]) * N + o_n[None, :])  # [M, N]
    b_scale = tl.load(p_scale + o_c).to(tl.float32)[None, :]
    b_shift = tl.load(p_shift + o_c).to(tl.float32)[None, :]
    b_weight = tl.load(p_weight + o_c).to(tl.float32)[None, :]
    b_bias = tl.load(p_bias).to(tl.float32)
    o_grad, o_x = o_f.to(tl.int64) * s_grad_f, o_f.to(tl.int64) * s_f
    b_open_sum = tl.zeros([N // 16, 8, C], tl.float32)  # of the logits' gradient where the unit is open
    b_up_sum = tl.zeros([N // 16, 8, C], tl.float32)  # the same times the upsampled values
    b_sum = tl.zeros([N], tl.float32)
    for i_frame in tl.range(first, tl.minimum(first + chunk, total)):
        p_frame = p_z + i_frame * (ROWS * C)
        b_z = tl.load(p_frame + o_row[:, None] * C + o_c[None, :], mask=(o_row < ROWS)[:, None], other=0.0)  # [K, C]
        b_up = tl.dot(b_map, b_z, input_precision=PRECISION)  # [N, C]
        b_before = b_up * b_scale + b_shift
        b_logit = tl.sum(tl.maximum(b_before, 0.0) * b_weight, 1) + b_bias
        b_mask = 1.0 / (1.0 + tl.exp(-b_logit))
        i_b, i_t = i_frame // frames, i_frame % frames
        p_g = p_grad + i_b * s_grad_b + i_t * s_grad_t + o_grad
        b_g_re = tl.load(p_g, mask=m_f, other=0.0)
        b_g_im = tl.load(p_g + 1, mask=m_f, other=0.0)
        p_x = p_spectrum + i_b * s_b + i_t * s_t + o_x
        b_re = tl.load(p_x, mask=m_f, other=0.0)
        b_im = tl.load(p_x + 1, mask=m_f, other=0.0)
        if SPECTRUM:
            p_y = p_grad_spectrum + i_b * s_out_b + i_t * s_out_t + o_f.to(tl.int64) * s_out_f
            tl.store(p_y, b_g_re * b_mask, mask=m_own)
            tl.store(p_y + 1, b_g_im * b_mask, mask=m_own)
        b_d = b_mask * (1.0 - b_mask) * (b_g_re * b_re + b_g_im * b_im)  # [N]
        b_open = tl.where(b_before > 0, b_d[:, None], 0.0)  # [N, C]
        b_sum += b_d
        b_rows = tl.dot(b_down, b_open.to(b_z.dtype), input_precision=PRECISION)  # [M, C]
        o_rows = o_out[:, None] * C + o_c[None, :]
        b_own = tl.where(m_own[:, None], b_open, 0.0)
        b_open_sum += _pairs(b_own)
        b_up_sum += _pairs(b_own * b_up)
        b_rows = (b_rows * (b_weight * b_scale)).to(p_grad_z.dtype.element_ty)
        tl.store(p_grad_z + i_frame * (ROWS * C) + o_rows, b_rows, mask=m_out)
    p_sum = p_sums + tl.program_id(0).to(tl.int64) * (2 * C + 1)
    tl.store(p_sum + o_c, tl.sum(tl.sum(b_open_sum, 0), 0))
    tl.store(p_sum + C + o_c, tl.sum(tl.sum(b_up_sum, 0), 0))
    tl.store(p_sum + 2 * C, tl.sum(tl.where(m_own, b_sum, 0.0), 0))


def launch_mask_head_backward(
    grad: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    spectrum: Tensor,
    with_spectrum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, scale, shift, weight, bias and, where asked for, spectrum (else empty).

    grad: complex (B, bins, T), any strides, the rest as in ``mask_head``. Gradients of the vectors are float32.
    """
    batch, frames, bands, taps, channels = z.shape
    grad_z, grad_spectrum = like(z), _like_where(spectrum, with_spectrum)
    pairs, grad_pairs = torch.view_as_real(spectrum), torch.view_as_real(grad.resolve_conj())
    out_pairs = torch.view_as_real(grad_spectrum) if with_spectrum else pairs
    tables = band_blocks(bands, spectrum.shape[1], z.dtype, z.device)
    blocks, n, k = tables.up.shape
    chunk = chunk_of(batch * frames, blocks, z.device)
    groups = triton.cdiv(batch * frames, chunk)
    sums = torch.empty(blocks * groups, 2 * channels + 1, dtype=torch.float32, device=z.device)

    def cost() -> Cost:  # blocks overlap in z and in the spectra
        flop = 2 * 2 * batch * frames * spectrum.shape[1] * 6 * channels  # of the entries that are not zero
        windows = batch * frames * blocks * (k * channels * z.element_size() + 2 * n * pairs.element_size())
        l2 = windows + groups * size(tables.up, tables.down) + size(grad_z, sums)
        dram = size(z, grad_z, spectrum, grad, sums)
        return Cost((min(chunk, batch * frames),), flop, l2_bytes=l2, dram_bytes=dram)

    launch(
        mask_head_backward_kernel,
        blocks * groups,
        cost,
        num_warps=8 if tensor_memory(z.device) else 4,  # four have 53 spill instructions there
        num_stages=2 if warpgroups(z.device) else 1,  # the second spills
        p_grad=grad_pairs,
        p_z=z.contiguous(),
        p_up=tables.up,
        p_down=tables.down,
        p_bounds=tables.bounds,
        p_scale=scale,
        p_shift=shift,
        p_weight=weight.reshape(-1),
        p_bias=bias,
        p_spectrum=pairs,
        p_grad_z=grad_z,
        p_sums=sums,
        p_grad_spectrum=out_pairs,
        frames=frames,
        total=batch * frames,
        blocks=blocks,
        chunk=chunk,
        s_grad_b=grad_pairs.stride(0),
        s_grad_f=grad_pairs.stride(1),
        s_grad_t=grad_pairs.stride(2),
        s_b=pairs.stride(0),
        s_f=pairs.stride(1),
        s_t=pairs.stride(2),
        s_out_b=out_pairs.stride(0),
        s_out_f=out_pairs.stride(1),
        s_out_t=out_pairs.stride(2),
        ROWS=taps * bands,
        C=channels,
        M=tables.down.shape[1],
        N=n,
        K=k,
        SPECTRUM=with_spectrum,
        PRECISION=dot_precision(z),
    )
    return grad_z, *_vector_gradients(sums, scale, shift, weight), grad_spectrum


def _vector_gradients(
    sums: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of scale, shift, weight and bias, from what the programs left."""
    channels = scale.shape[0]
    opened, times_up, logits = sums.sum(0).split([channels, channels, 1])
    flat, scale, shift = weight.reshape(-1).float(), scale.float(), shift.float()
    grad_weight = (scale * times_up + shift * opened).view(weight.shape)
    return flat * times_up, flat * opened, grad_weight, logits.clone()  # results of an operator share no memory


def _like_where(tensor: Tensor, asked: bool) -> Tensor:
    return torch.empty_like(tensor) if asked else tensor.new_empty(0)


def _shapes(
    grad: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    spectrum: Tensor,
    with_spectrum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_spectrum = _like_where(spectrum, with_spectrum)
    return like(z), single(scale), single(shift), single(weight), single(bias), grad_spectrum


mask_head_backward = operator("mask_head_backward", launch_mask_head_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    asked = ctx.needs_input_grad[5]
    *gradients, grad_spectrum = mask_head_backward(grad, *ctx.saved_tensors, asked)
    return *as_dtypes_of(gradients, ctx.saved_tensors[:5]), grad_spectrum if asked else None


mask_head.register_autograd(_gradient, setup_context=_keep)
