"""``spectral_loss`` and its gradient in one read of both spectra: with the gradient written where it is found, the way
back has nothing to do but to scale it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.spectral_loss.reference import EPS
from fastenh_kernels.shared.compression import as_frames
from fastenh_kernels.shared.context import needs_gradient
from fastenh_kernels.shared.launch import Cost, launch, size
from fastenh_kernels.shared.operators import operator

BLOCK = 512  # bins of a program; 4 warps


@triton.jit
def pairs_of(p_spectrum, o, m):
    """[BLOCK] twice: real and imaginary part."""
    return tl.split(tl.load(p_spectrum + o, mask=m, other=0.0))


@triton.jit
def compressed(b_re, b_im, POWER: tl.constexpr, EPS: tl.constexpr):
    """|S|^POWER, the factor that compresses S, and the logarithm of |S|^2 + EPS to base 2."""
    b_log = tl.log2(b_re * b_re + b_im * b_im + EPS)
    return tl.exp2(b_log * (POWER / 2)), tl.exp2(b_log * ((POWER - 1) / 2)), b_log


@triton.jit(do_not_specialize=["bins"])
def spectral_loss_kernel(
    p_estimate,  # (bins, 2), contiguous
    p_clean,  # as estimate
    p_parts,  # (programs,), float32: weighted sums over the bins of a program
    p_gradient,  # as estimate: of the weighted sum over all bins
    bins,
    of_magnitude,  # weight of a bin
    of_complex,
    POWER: tl.constexpr,
    EPS: tl.constexpr,
    GRADIENT: tl.constexpr,  # asked for
    BLOCK: tl.constexpr,
):
    o_bin = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    o, m = o_bin * 2 + tl.arange(0, 2)[None, :], o_bin < bins
    b_re, b_im = pairs_of(p_estimate, o, m)
    b_clean_re, b_clean_im = pairs_of(p_clean, o, m)
    b_magnitude, b_factor, b_log = compressed(b_re, b_im, POWER, EPS)
    b_clean_magnitude, b_clean_factor, _ = compressed(b_clean_re, b_clean_im, POWER, EPS)
    b_away = b_magnitude - b_clean_magnitude  # nothing past the end, where both are silent
    b_away_re = b_re * b_factor - b_clean_re * b_clean_factor
    b_away_im = b_im * b_factor - b_clean_im * b_clean_factor
    b_complex = b_away_re * b_away_re + b_away_im * b_away_im
    tl.store(p_parts + tl.program_id(0), tl.sum(of_magnitude * b_away * b_away + of_complex * b_complex, 0))
    if GRADIENT:
        # |S|^2 + EPS is x, so that the magnitude is x^(POWER / 2) and the factor x^((POWER - 1) / 2)
        b_along = b_away_re * b_re + b_away_im * b_im
        b_of_x = (of_magnitude * POWER) * b_away * b_magnitude + (of_complex * (POWER - 1)) * b_along * b_factor
        b_of_x *= 2 * tl.exp2(-b_log)
        b_factor *= 2 * of_complex
        b_gradient = tl.join(b_of_x * b_re + b_factor * b_away_re, b_of_x * b_im + b_factor * b_away_im)
        tl.store(p_gradient + o, b_gradient, mask=m)


def launch_spectral_loss(
    estimate: Tensor, clean: Tensor, magnitude_weight: float, complex_weight: float, power: float, gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss and, where asked for, its gradient, else an empty tensor; bins side by side."""
    _, found = _shapes(estimate, clean, magnitude_weight, complex_weight, power, gradient)
    bins = max(1, estimate.numel())
    programs = triton.cdiv(estimate.numel(), BLOCK)
    parts = torch.empty(programs, dtype=torch.float32, device=estimate.device)

    def cost() -> Cost:
        moved = size(estimate, clean, found, parts)
        return Cost((), flop=0.0, l2_bytes=moved, dram_bytes=moved)

    launch(
        spectral_loss_kernel,
        programs,
        cost,
        num_warps=4,
        p_estimate=as_frames(estimate),
        p_clean=as_frames(clean),
        p_parts=parts,
        p_gradient=as_frames(found) if gradient else parts,
        bins=bins,
        of_magnitude=magnitude_weight / bins,
        of_complex=complex_weight / bins,
        POWER=power,
        EPS=EPS,
        GRADIENT=gradient,
        BLOCK=BLOCK,
    )
    return parts.sum(), found


def _shapes(
    estimate: Tensor, clean: Tensor, magnitude_weight: float, complex_weight: float, power: float, gradient: bool
) -> tuple[Tensor, Tensor]:
    batch, bins, frames = estimate.shape
    found = estimate.new_empty(batch, frames, bins) if gradient else estimate.new_empty(0, 0, 0)
    return estimate.new_empty((), dtype=torch.float32), found.transpose(1, 2)


spectral_loss_operator = operator("spectral_loss", launch_spectral_loss, _shapes)


def spectral_loss(
    estimate: Tensor, clean: Tensor, magnitude_weight: float, complex_weight: float, power: float
) -> Tensor:
    gradient = needs_gradient(estimate)
    return spectral_loss_operator(estimate, clean, magnitude_weight, complex_weight, power, gradient)[0]
