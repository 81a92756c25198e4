"""The walk of ``compressed_front`` with moments in place of bias and SiLU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.compressed_front.forward import features_of, front_matrix
from fastenh_kernels.shared.compression import EPS, as_frames
from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, dot_precision, launch, parts_of, size
from fastenh_kernels.shared.moments import combined_moments, store_moments
from fastenh_kernels.shared.operators import operator

BANDS = 64


@triton.jit(do_not_specialize=["frames", "chunk", "chunks"])
def front_convolution_kernel(
    p_spectrum,  # (B, T, 257, 2), contiguous
    p_weight,  # (C, 3, 8, 3)
    p_y,  # (B, T, 64, C)
    p_parts,  # (programs, 2 C + 1), float32: means, sums of squared deviations, count
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
    b_before, b_own, b_behind = front_matrix(p_weight, 0, C), front_matrix(p_weight, 1, C), front_matrix(p_weight, 2, C)
    o_y = tl.arange(0, 64)[:, None] * C + tl.arange(0, C)[None, :]
    b_first, b_sum, b_square = (tl.zeros([64, C], tl.float32),) * 3
    t = first + AHEAD - 2
    b_x0 = features_of(p_clip + t * 514, (t >= 0) & (t < frames), POWER, EPS).to(dtype)
    b_x1 = features_of(p_clip + (t + 1) * 514, (t + 1 >= 0) & (t + 1 < frames), POWER, EPS).to(dtype)
    for t in tl.range(first, last):
        b_x2 = features_of(p_clip + (t + AHEAD) * 514, t + AHEAD < frames, POWER, EPS).to(dtype)
        b_y = tl.dot(b_x0, b_before, input_precision=PRECISION)
        b_y = tl.dot(b_x1, b_own, b_y, input_precision=PRECISION)
        b_y = tl.dot(b_x2, b_behind, b_y, input_precision=PRECISION).to(dtype)
        tl.store(p_y + (clip * frames + t) * (64 * C) + o_y, b_y)
        b_y = b_y.to(tl.float32)  # moments of what is stored, since that is normalised
        b_first = tl.where(t == first, b_y, b_first)
        b_y -= b_first
        b_sum += b_y
        b_square += b_y * b_y
        b_x0, b_x1 = b_x1, b_x2
    p_part = p_parts + tl.program_id(0).to(tl.int64) * (2 * C + 1)
    store_moments(p_part, b_first, b_sum, b_square, (last - first).to(tl.float32), 64, C)


def launch_front_convolution(
    spectrum: Tensor, weight: Tensor, power: float, ahead: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """In ``dtype``, to which the weight is rounded."""
    y, _, _ = _shapes(spectrum, weight, power, ahead, dtype)
    weight = weight.to(dtype).contiguous()
    batch, _, frames = spectrum.shape
    chunk, chunks = chunks_of(frames, batch, spectrum.device)
    channels = weight.shape[0]
    parts = torch.empty(batch * chunks, 2 * channels + 1, dtype=torch.float32, device=y.device)

    def cost() -> Cost:
        flop = 2 * batch * frames * BANDS * weight.numel()
        l2 = 2 * size(spectrum) * (1 + 2 * chunks / max(frames, 1)) + batch * chunks * size(weight) + size(y, parts)
        return Cost((frames / max(chunks, 1),), flop, l2_bytes=l2, dram_bytes=size(spectrum, weight, y, parts))

    launch(
        front_convolution_kernel,
        batch * chunks,
        cost,
        num_warps=4,
        num_stages=1,
        p_spectrum=as_frames(spectrum),
        p_weight=weight,
        p_y=y,
        p_parts=parts,
        frames=frames,
        chunk=chunk,
        chunks=chunks,
        C=channels,
        AHEAD=ahead,
        POWER=power,
        EPS=EPS,
        PRECISION=dot_precision(weight),
    )
    return y, *combined_moments(parts)


def chunks_of(frames: int, batch: int, device: torch.device) -> tuple[int, int]:
    """Frames of a program and programs of a clip, no more in all than fill the device twice, or once for few frames."""
    chunk = max(1, triton.cdiv(frames, max(1, parts_of(frames * batch, 1, device) // max(batch, 1))))
    return chunk, triton.cdiv(frames, chunk)


def _shapes(
    spectrum: Tensor, weight: Tensor, power: float, ahead: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    y = weight.new_empty(spectrum.shape[0], spectrum.shape[2], BANDS, weight.shape[0], dtype=dtype)
    mean = weight.new_empty(weight.shape[0], dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


front_convolution_operator = operator("front_convolution", launch_front_convolution, _shapes)


def front_convolution(spectrum: Tensor, weight: Tensor, power: float, ahead: int) -> tuple[Tensor, Tensor, Tensor]:
    return front_convolution_operator(spectrum, weight, power, ahead, autocast_dtype(weight))
