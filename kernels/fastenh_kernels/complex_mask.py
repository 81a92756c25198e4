"""activation(mask) x spectrum: one read of each and one write, 20 bytes an element for a float32 mask."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.launch import launch

_ACTIVATIONS = {"none": 0, "sigmoid": 1, "tanh": 2}
_BLOCK = 512  # elements a program; 4 warps: 4 elements a thread, 16-byte loads of the spectrum


@triton.jit
def _bounded(b_magnitude):
    """tanh(m) / m; the series below 0.1, where the quotient loses digits."""
    b_square = b_magnitude * b_magnitude
    b_series = 1.0 - b_square * (1.0 / 3.0 - b_square * (2.0 / 15.0 - b_square * (17.0 / 315.0)))
    b_tanh = 1.0 - 2.0 / (tl.exp(2.0 * b_magnitude) + 1.0)
    return tl.where(b_magnitude < 0.1, b_series, b_tanh / tl.maximum(b_magnitude, 0.1))


@triton.jit(do_not_specialize=["frames", "bins", "elements"])
def complex_mask_kernel(
    p_mask,  # (B, F, T), real; or (B, F, T, 2), real and imaginary part
    p_spectrum,  # (B, F, T, 2)
    p_out,  # (B, F, T, 2), contiguous
    elements,  # B * F * T
    bins,
    frames,
    s_mask_b,
    s_mask_f,
    s_mask_t,
    s_spectrum_b,
    s_spectrum_f,
    s_spectrum_t,
    ACTIVATION: tl.constexpr,
    COMPLEX_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < elements
    o_t = o % frames
    o_f = (o // frames) % bins
    o_b = o // frames // bins
    o_mask = o_b * s_mask_b + o_f * s_mask_f + o_t * s_mask_t
    o_spectrum = o_b * s_spectrum_b + o_f * s_spectrum_f + o_t * s_spectrum_t
    b_re = tl.load(p_spectrum + o_spectrum, mask=m, other=0.0)
    b_im = tl.load(p_spectrum + o_spectrum + 1, mask=m, other=0.0)
    b_mask = tl.load(p_mask + o_mask, mask=m, other=0.0).to(tl.float32)
    if COMPLEX_MASK:
        b_mask_im = tl.load(p_mask + o_mask + 1, mask=m, other=0.0).to(tl.float32)
        if ACTIVATION == 2:
            b_gain = _bounded(tl.sqrt(b_mask * b_mask + b_mask_im * b_mask_im))
            b_mask = b_mask * b_gain
            b_mask_im = b_mask_im * b_gain
        b_out_re = b_re * b_mask - b_im * b_mask_im
        b_out_im = b_re * b_mask_im + b_im * b_mask
    else:
        if ACTIVATION == 1:
            b_mask = 1.0 / (1.0 + tl.exp(-b_mask))
        if ACTIVATION == 2:
            b_mask = b_mask * _bounded(tl.abs(b_mask))
        b_out_re = b_re * b_mask
        b_out_im = b_im * b_mask
    tl.store(p_out + 2 * o, b_out_re, mask=m)
    tl.store(p_out + 2 * o + 1, b_out_im, mask=m)


def complex_mask(mask: Tensor, spectrum: Tensor, activation: str) -> Tensor:
    """``activation(mask) * spectrum``: see ``fastenh.ops.complex_mask``. Any strides; the result is contiguous."""
    if mask.is_complex() and activation == "sigmoid":
        raise ValueError("a complex mask takes the activation 'tanh' or 'none', not 'sigmoid'")
    batch, bins, frames = spectrum.shape
    out = torch.empty(spectrum.shape, dtype=spectrum.dtype, device=spectrum.device)
    pairs = torch.view_as_real(spectrum)
    values = torch.view_as_real(mask) if mask.is_complex() else mask
    elements = batch * bins * frames
    arguments = {
        "p_mask": values,
        "p_spectrum": pairs,
        "p_out": torch.view_as_real(out),
        "elements": elements,
        "bins": bins,
        "frames": frames,
        **dict(zip(("s_mask_b", "s_mask_f", "s_mask_t"), values.stride()[:3], strict=True)),
        **dict(zip(("s_spectrum_b", "s_spectrum_f", "s_spectrum_t"), pairs.stride()[:3], strict=True)),
        "ACTIVATION": _ACTIVATIONS[activation],
        "COMPLEX_MASK": mask.is_complex(),
        "BLOCK": _BLOCK,
    }
    launch(complex_mask_kernel, triton.cdiv(elements, _BLOCK), arguments, num_warps=4)
    return out
