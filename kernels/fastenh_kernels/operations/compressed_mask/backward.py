"""The gradients of ``compressed_mask``: of its rows, of the weight and of the bias, in one walk along time.

The result Y stands for the masked compressed spectrum, u = Y |Y|^(power - 1), so that no mask is kept or made again.
With g the gradient of Y, that of u is ``|Y|^(1 - power) (g + (1 / power - 1) (g, Y) Y / |Y|^2)``, and that of the mask
is this times the conjugate of the compressed spectrum. The 8 bins of a band in three frames lie side by side in a tile
of 64 columns, as in ``front_convolution``: one product gives the gradient of the rows, another that of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.compressed_mask.forward import compressed_mask_operator
from fastenh_kernels.operations.front_convolution.forward import BANDS, chunks_of
from fastenh_kernels.shared.bands import log2
from fastenh_kernels.shared.compression import EPS, as_frames
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, size
from fastenh_kernels.shared.operators import as_dtypes_of, like, operator, single

TINY = tl.constexpr(1e-34)  # where nothing came out, nothing goes back


@triton.jit
def bins_of(p_frame, o, m):
    """[64 bands, 8 bins] twice: the real and the imaginary part."""
    return tl.split(tl.reshape(tl.load(p_frame + o, mask=m, other=0.0), (64, 8, 2)))


@triton.jit
def grad_mask_of(p_grad, p_out, p_spectrum, t, frames, POWER: tl.constexpr, EPS: tl.constexpr):
    """[64 bands, 16] of frame t, zeros outside of the clip: the gradient of the mask in the 8 bins of each band, real
    and imaginary part side by side."""
    o = (4 * tl.arange(0, 64)[:, None] - 2) * 2 + tl.arange(0, 16)[None, :]
    m = (o >= 0) & (o < 512) & (t >= 0) & (t < frames)
    b_g_re, b_g_im = bins_of(p_grad + t * 514, o, m)
    b_y_re, b_y_im = bins_of(p_out + t * 514, o, m)
    b_re, b_im = bins_of(p_spectrum + t * 514, o, m)
    b_log = log2(b_y_re * b_y_re + b_y_im * b_y_im + TINY)
    b_along = (b_g_re * b_y_re + b_g_im * b_y_im) * tl.exp2(-b_log) * (1 / POWER - 1)
    b_factor = log2(b_re * b_re + b_im * b_im + EPS) * ((POWER - 1) / 2) + b_log * ((1 - POWER) / 2)
    b_factor = tl.exp2(b_factor)
    b_g_re = (b_g_re + b_along * b_y_re) * b_factor
    b_g_im = (b_g_im + b_along * b_y_im) * b_factor
    b_mask = tl.join(b_g_re * b_re + b_g_im * b_im, b_g_im * b_re - b_g_re * b_im)
    return tl.reshape(b_mask, (64, 16))


@triton.jit(do_not_specialize=["frames", "chunk", "chunks"])
def compressed_mask_backward_kernel(
    p_grad,  # (B, T, 257, 2), contiguous
    p_x,  # (B, T, 64, C), contiguous
    p_weight,  # (C, 2, 8, 3)
    p_spectrum,  # as grad
    p_out,  # as grad: the result
    p_grad_x,  # as x
    p_weights,  # (programs, 8 bins x 2 parts x 4, C), float32: of three frames and nothing
    p_biases,  # (programs, 8 bins x 2 parts), float32
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
    dtype = p_x.dtype.element_ty
    o_clip = clip * frames * 514
    p_grad, p_out, p_spectrum = p_grad + o_clip, p_out + o_clip, p_spectrum + o_clip
    o, o_c = tl.arange(0, 64), tl.arange(0, C)
    o_found = o[:, None] * C + o_c[None, :]
    o_weight = o // 4 % 2 * 24 + o // 8 * 3 + o % 4
    b_w = tl.load(p_weight + o_c[None, :] * 48 + o_weight[:, None], mask=(o % 4 < 3)[:, None], other=0.0)
    b_weights, b_bias = tl.zeros([64, C], tl.float32), tl.zeros([64, 16], tl.float32)
    t = first - AHEAD
    b_m0 = grad_mask_of(p_grad, p_out, p_spectrum, t, frames, POWER, EPS).to(dtype)
    b_m1 = grad_mask_of(p_grad, p_out, p_spectrum, t + 1, frames, POWER, EPS).to(dtype)
    for t in tl.range(first, last):
        b_m2 = grad_mask_of(p_grad, p_out, p_spectrum, t + 2 - AHEAD, frames, POWER, EPS).to(dtype)
        b_m = tl.reshape(tl.join(tl.join(b_m0, b_m2), tl.join(b_m1, tl.zeros_like(b_m1))), (64, 64))
        o_t = (clip * frames + t) * (64 * C) + o_found
        b_dx = tl.dot(b_m, b_w, input_precision=PRECISION)
        tl.store(p_grad_x + o_t, b_dx.to(dtype))
        b_weights = tl.dot(tl.trans(b_m), tl.load(p_x + o_t), b_weights, input_precision=PRECISION)
        b_own = b_m0 if AHEAD == 0 else b_m1 if AHEAD == 1 else b_m2
        b_bias += b_own.to(tl.float32)
        b_m0, b_m1 = b_m1, b_m2
    program = tl.program_id(0).to(tl.int64)
    tl.store(p_weights + program * (64 * C) + o_found, b_weights)
    tl.store(p_biases + program * 16 + tl.arange(0, 16), tl.sum(b_bias, 0))


def launch_compressed_mask_backward(
    grad: Tensor, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int
) -> list[Tensor]:
    """Gradients of x and, in float32, of weight and bias."""
    batch, frames, _, channels = x.shape
    x, grad_x = x.contiguous(), like(x)
    weight = weight.to(x.dtype).contiguous()
    chunk, chunks = chunks_of(frames, batch, x.device)
    programs = batch * chunks
    weights = torch.empty(programs, 64, channels, dtype=torch.float32, device=x.device)
    biases = torch.empty(programs, 16, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        spectra = 3 * size(spectrum)
        moved = spectra + size(x, grad_x, weights, biases)
        l2 = moved + spectra * (1 + 4 * chunks / max(frames, 1)) + programs * size(weight)  # a bin lies in two bands
        flop = 4 * batch * frames * BANDS * weight.numel()
        return Cost((frames / max(chunks, 1),), flop, l2_bytes=l2, dram_bytes=moved + size(weight))

    launch(
        compressed_mask_backward_kernel,
        programs,
        cost,
        num_warps=4,
        num_stages=1,
        p_grad=as_frames(grad.resolve_conj()),
        p_x=x,
        p_weight=weight,
        p_spectrum=as_frames(spectrum),
        p_out=as_frames(out),
        p_grad_x=grad_x,
        p_weights=weights,
        p_biases=biases,
        frames=frames,
        chunk=chunk,
        chunks=chunks,
        C=channels,
        AHEAD=ahead,
        POWER=power,
        EPS=EPS,
        PRECISION=dot_precision(x),
    )
    found = weights.sum(0).view(8, 2, 4, channels)[:, :, :3].permute(3, 1, 0, 2)
    return [grad_x, found.contiguous(), biases.sum(0).view(8, 2)[2:6].sum(0)]  # a band's own bins are four of the eight


def _shapes(
    grad: Tensor, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int
) -> list[Tensor]:
    return [like(x), single(weight), single(bias)]


compressed_mask_backward = operator("compressed_mask_backward", launch_compressed_mask_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.power, ctx.ahead = inputs
    ctx.save_for_backward(output, *tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    out, x, weight, bias, spectrum = ctx.saved_tensors
    found = compressed_mask_backward(grad, out, x, weight, bias, spectrum, ctx.power, ctx.ahead)
    return *as_dtypes_of(found, (x, weight, bias)), None, None, None


compressed_mask_operator.register_autograd(_gradient, setup_context=_keep)
