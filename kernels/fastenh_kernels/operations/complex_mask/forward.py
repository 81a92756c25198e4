"""activation(mask) x spectrum: one read of each and one write, 20 bytes an element for a float32 mask."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import Cost, launch, size
from fastenh_kernels.shared.operators import operator

ACTIVATIONS = {"none": 0, "sigmoid": 1, "tanh": 2}
BLOCK = 512  # elements a program; 4 warps: 4 elements a thread, 16-byte loads of the spectrum


@triton.jit
def bounded(b_magnitude):
    """tanh(m) / m; the series below 0.1, where the quotient loses digits."""
    b_square = b_magnitude * b_magnitude
    b_series = 1.0 - b_square * (1.0 / 3.0 - b_square * (2.0 / 15.0 - b_square * (17.0 / 315.0)))
    b_tanh = 1.0 - 2.0 / (tl.exp(2.0 * b_magnitude) + 1.0)
    return tl.where(b_magnitude < 0.1, b_series, b_tanh / tl.maximum(b_magnitude, 0.1))


@triton.jit(do_not_specialize=["slow", "fast", "elements"])
def complex_mask_kernel(
    p_mask,  # (B, slow, fast), real; or (B, slow, fast, 2), real and imaginary part
    p_spectrum,  # (B, slow, fast, 2); slow and fast are F and T, or T and F, whichever is closer together
    p_out,  # the same
    elements,  # B * slow * fast
    slow,
    fast,
    s_mask_b,
    s_mask_slow,
    s_mask_fast,
    s_spectrum_b,
    s_spectrum_slow,
    s_spectrum_fast,
    s_out_b,
    s_out_slow,
    s_out_fast,
    ACTIVATION: tl.constexpr,
    COMPLEX_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < elements
    o_fast = o % fast
    o_slow = (o // fast) % slow
    o_b = o // fast // slow
    o_mask = o_b * s_mask_b + o_slow * s_mask_slow + o_fast * s_mask_fast
    o_spectrum = o_b * s_spectrum_b + o_slow * s_spectrum_slow + o_fast * s_spectrum_fast
    o_out = o_b * s_out_b + o_slow * s_out_slow + o_fast * s_out_fast
    b_re = tl.load(p_spectrum + o_spectrum, mask=m, other=0.0)
    b_im = tl.load(p_spectrum + o_spectrum + 1, mask=m, other=0.0)
    b_mask = tl.load(p_mask + o_mask, mask=m, other=0.0).to(tl.float32)
    if COMPLEX_MASK:
        b_mask_im = tl.load(p_mask + o_mask + 1, mask=m, other=0.0).to(tl.float32)
        if ACTIVATION == 2:
            b_gain = bounded(tl.sqrt(b_mask * b_mask + b_mask_im * b_mask_im))
            b_mask = b_mask * b_gain
            b_mask_im = b_mask_im * b_gain
        b_out_re = b_re * b_mask - b_im * b_mask_im
        b_out_im = b_re * b_mask_im + b_im * b_mask
    else:
        if ACTIVATION == 1:
            b_mask = 1.0 / (1.0 + tl.exp(-b_mask))
        if ACTIVATION == 2:
            b_mask = b_mask * bounded(tl.abs(b_mask))
        b_out_re = b_re * b_mask
        b_out_im = b_im * b_mask
    tl.store(p_out + o_out, b_out_re, mask=m)
    tl.store(p_out + o_out + 1, b_out_im, mask=m)


def launch_complex_mask(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    """Any strides. The result has the strides of the spectrum where that is dense: ``torch.stft`` lays bins side by
    side."""
    out = torch.empty_like(spectrum)
    pairs, out_pairs = torch.view_as_real(spectrum), torch.view_as_real(out)
    values = torch.view_as_real(mask) if mask.is_complex() else mask
    elements = spectrum.numel()
    order = (0, 2, 1) if spectrum.stride(1) < spectrum.stride(2) else (0, 1, 2)

    def cost() -> Cost:
        moved = size(mask, spectrum, out)
        return Cost((), flop=0, l2_bytes=moved, dram_bytes=moved)

    launch(
        complex_mask_kernel,
        triton.cdiv(elements, BLOCK),
        cost,
        num_warps=4,
        p_mask=values,
        p_spectrum=pairs,
        p_out=out_pairs,
        elements=elements,
        slow=spectrum.shape[order[1]],
        fast=spectrum.shape[order[2]],
        **strides("mask", values, order),
        **strides("spectrum", pairs, order),
        **strides("out", out_pairs, order),
        ACTIVATION=ACTIVATIONS[activation],
        COMPLEX_MASK=mask.is_complex(),
        BLOCK=BLOCK,
    )
    return out


def strides(name: str, tensor: Tensor, order: tuple[int, int, int]) -> dict[str, int]:
    return {f"s_{name}_{part}": tensor.stride(axis) for part, axis in zip(("b", "slow", "fast"), order, strict=True)}


def _shapes(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    return torch.empty_like(spectrum)


complex_mask = operator("complex_mask", launch_complex_mask, _shapes)
