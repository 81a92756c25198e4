"""The gradient of the weight of ``front_convolution``: the same walk along time, the features of three frames times
what came back. The gradient of the moments is added to that as it is read, as in ``band_convolution``."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.compressed_front.forward import features_of
from fastenh_kernels.operations.front_convolution.forward import BANDS, chunks_of, front_convolution_operator
from fastenh_kernels.shared.compression import EPS, as_frames
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, size
from fastenh_kernels.shared.moments import gradient_of_moments
from fastenh_kernels.shared.norm import affine_of
from fastenh_kernels.shared.operators import operator, single


@triton.jit(do_not_specialize=["frames", "chunk", "chunks"])
def front_convolution_backward_kernel(
    p_grad,  # (B, T, 64, C), contiguous
    p_y,  # as grad
    p_moments,  # (2, C): slope and offset of the gradient of the moments
    p_spectrum,  # (B, T, 257, 2), contiguous
    p_weights,  # (programs, 32 features x 4, C), float32: of three frames and nothing
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
    dtype = p_grad.dtype.element_ty
    b_slope, b_offset = affine_of(p_moments, C)
    o_y = tl.arange(0, 64)[:, None] * C + tl.arange(0, C)[None, :]
    b_weights = tl.zeros([128, C], tl.float32)
    t = first + AHEAD - 2
    b_x0 = features_of(p_clip + t * 514, (t >= 0) & (t < frames), POWER, EPS).to(dtype)
    b_x1 = features_of(p_clip + (t + 1) * 514, (t + 1 >= 0) & (t + 1 < frames), POWER, EPS).to(dtype)
    for t in tl.range(first, last):
        b_x2 = features_of(p_clip + (t + AHEAD) * 514, t + AHEAD < frames, POWER, EPS).to(dtype)
        o_t = (clip * frames + t) * (64 * C) + o_y
        b_g = tl.load(p_grad + o_t).to(tl.float32) + tl.load(p_y + o_t).to(tl.float32) * b_slope + b_offset
        b_x = tl.reshape(tl.join(tl.join(b_x0, b_x2), tl.join(b_x1, tl.zeros_like(b_x1))), (64, 128))
        b_weights = tl.dot(tl.trans(b_x), b_g.to(dtype), b_weights, input_precision=PRECISION)
        b_x0, b_x1 = b_x1, b_x2
    o_found = tl.arange(0, 128)[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(p_weights + tl.program_id(0).to(tl.int64) * (128 * C) + o_found, b_weights)


def launch_front_convolution_backward(
    grad: Tensor, moments: Tensor, y: Tensor, spectrum: Tensor, weight: Tensor, power: float, ahead: int
) -> Tensor:
    """Gradient of the weight, in float32. moments: as in ``band_convolution``."""
    batch, _, frames = spectrum.shape
    channels = weight.shape[0]
    chunk, chunks = chunks_of(frames, batch, spectrum.device)
    weights = torch.empty(batch * chunks, 128, channels, dtype=torch.float32, device=grad.device)

    def cost() -> Cost:
        flop = 2 * batch * frames * BANDS * weight.numel()
        l2 = 2 * size(spectrum) * (1 + 2 * chunks / max(frames, 1)) + size(grad, y, weights)
        return Cost((frames / max(chunks, 1),), flop, l2_bytes=l2, dram_bytes=size(spectrum, grad, y, weights))

    launch(
        front_convolution_backward_kernel,
        batch * chunks,
        cost,
        num_warps=4,
        num_stages=1,
        p_grad=grad.contiguous(),
        p_y=y,
        p_moments=moments,
        p_spectrum=as_frames(spectrum),
        p_weights=weights,
        frames=frames,
        chunk=chunk,
        chunks=chunks,
        C=channels,
        AHEAD=ahead,
        POWER=power,
        EPS=EPS,
        PRECISION=dot_precision(grad),
    )
    found = weights.sum(0).view(8, 2, 2, 4, channels)[:, :, :, :3]  # (bins, parts, magnitude or not, frames, C)
    return torch.stack([found[:, 0, 0], found[:, 1, 0], found[:, 0, 1]]).permute(3, 0, 1, 2).contiguous()


def _shape(
    grad: Tensor, moments: Tensor, y: Tensor, spectrum: Tensor, weight: Tensor, power: float, ahead: int
) -> Tensor:
    return single(weight)


front_convolution_backward = operator("front_convolution_backward", launch_front_convolution_backward, _shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    spectrum, weight, ctx.power, ctx.ahead, _ = inputs
    y, mean, _ = output
    ctx.save_for_backward(y, mean, spectrum, weight)


def _gradient(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
    y, mean, spectrum, weight = ctx.saved_tensors
    moments = torch.stack(gradient_of_moments(y.numel() // y.shape[3], mean, grad_mean, grad_var))
    found = front_convolution_backward(grad, moments, y, spectrum, weight, ctx.power, ctx.ahead)
    return None, found.to(weight.dtype), None, None, None


front_convolution_operator.register_autograd(_gradient, setup_context=_keep)
