"""The gradients of ``complex_mask``: mask and, where asked for, spectrum, in one pass."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.complex_mask.forward import ACTIVATIONS, BLOCK, bounded, complex_mask, strides
from fastenh_kernels.shared.launch import Cost, launch, size
from fastenh_kernels.shared.operators import operator


@triton.jit
def _bounded_slope(b_magnitude, b_gain):
    """h' / m of h = tanh(m) / m; the series below 0.1, where the difference loses digits."""
    b_square = b_magnitude * b_magnitude
    b_series = -2.0 / 3.0 + b_square * (8.0 / 15.0 - b_square * (34.0 / 105.0 - b_square * (496.0 / 2835.0)))
    b_tanh = b_magnitude * b_gain
    b_slope = (1.0 - b_tanh * b_tanh - b_gain) / tl.maximum(b_square, 0.01)
    return tl.where(b_magnitude < 0.1, b_series, b_slope)


@triton.jit(do_not_specialize=["slow", "fast", "elements"])
def complex_mask_backward_kernel(
    p_grad,  # (B, slow, fast, 2); slow and fast are F and T, or T and F, as in complex_mask_kernel
    p_mask,  # (B, slow, fast), real; or (B, slow, fast, 2)
    p_spectrum,  # (B, slow, fast, 2)
    p_grad_mask,  # as the mask
    p_grad_spectrum,  # as the spectrum
    elements,  # B * slow * fast
    slow,
    fast,
    s_grad_b,
    s_grad_slow,
    s_grad_fast,
    s_mask_b,
    s_mask_slow,
    s_mask_fast,
    s_spectrum_b,
    s_spectrum_slow,
    s_spectrum_fast,
    s_to_mask_b,
    s_to_mask_slow,
    s_to_mask_fast,
    s_to_spectrum_b,
    s_to_spectrum_slow,
    s_to_spectrum_fast,
    ACTIVATION: tl.constexpr,
    COMPLEX_MASK: tl.constexpr,
    SPECTRUM: tl.constexpr,  # its gradient is asked for
    BLOCK: tl.constexpr,
):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < elements
    o_line = o // fast
    o_b = o_line // slow
    o_fast, o_slow = o - o_line * fast, o_line - o_b * slow
    p_grad += o_b * s_grad_b + o_slow * s_grad_slow + o_fast * s_grad_fast
    p_mask += o_b * s_mask_b + o_slow * s_mask_slow + o_fast * s_mask_fast
    p_spectrum += o_b * s_spectrum_b + o_slow * s_spectrum_slow + o_fast * s_spectrum_fast
    p_grad_mask += o_b * s_to_mask_b + o_slow * s_to_mask_slow + o_fast * s_to_mask_fast
    b_g_re = tl.load(p_grad, mask=m, other=0.0)
    b_g_im = tl.load(p_grad + 1, mask=m, other=0.0)
    b_re = tl.load(p_spectrum, mask=m, other=0.0)
    b_im = tl.load(p_spectrum + 1, mask=m, other=0.0)
    b_mask = tl.load(p_mask, mask=m, other=0.0).to(tl.float32)
    b_mask_im = tl.zeros([BLOCK], tl.float32)
    b_d = b_g_re * b_re + b_g_im * b_im  # of the activated mask
    if COMPLEX_MASK:
        b_mask_im = tl.load(p_mask + 1, mask=m, other=0.0).to(tl.float32)
        b_d_im = b_g_im * b_re - b_g_re * b_im
        if ACTIVATION == 2:
            b_magnitude = tl.sqrt(b_mask * b_mask + b_mask_im * b_mask_im)
            b_gain = bounded(b_magnitude)
            b_along = (b_mask * b_d + b_mask_im * b_d_im) * _bounded_slope(b_magnitude, b_gain)
            b_d = b_d * b_gain + b_mask * b_along
            b_d_im = b_d_im * b_gain + b_mask_im * b_along
            b_mask = b_mask * b_gain
            b_mask_im = b_mask_im * b_gain
        tl.store(p_grad_mask + 1, b_d_im, mask=m)
    else:
        if ACTIVATION == 1:
            b_mask = 1.0 / (1.0 + tl.exp(-b_mask))
            b_d = b_d * b_mask * (1.0 - b_mask)
        if ACTIVATION == 2:
            b_mask = b_mask * bounded(tl.abs(b_mask))
            b_d = b_d * (1.0 - b_mask * b_mask)
    tl.store(p_grad_mask, b_d.to(p_grad_mask.dtype.element_ty), mask=m)
    if SPECTRUM:
        p_grad_spectrum += o_b * s_to_spectrum_b + o_slow * s_to_spectrum_slow + o_fast * s_to_spectrum_fast
        tl.store(p_grad_spectrum, b_g_re * b_mask + b_g_im * b_mask_im, mask=m)
        tl.store(p_grad_spectrum + 1, b_g_im * b_mask - b_g_re * b_mask_im, mask=m)


def launch_complex_mask_backward(
    grad: Tensor, mask: Tensor, spectrum: Tensor, activation: str, with_spectrum: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of mask and, where asked for, spectrum (else empty). grad: complex (B, F, T).

    Any strides; the results have those of mask and spectrum where these are dense.
    """
    grad_mask, grad_spectrum = _shapes(grad, mask, spectrum, activation, with_spectrum)
    order = (0, 2, 1) if spectrum.stride(1) < spectrum.stride(2) else (0, 1, 2)
    tensors = {
        "grad": grad.resolve_conj(),
        "mask": mask,
        "spectrum": spectrum,
        "to_mask": grad_mask,
        "to_spectrum": grad_spectrum if with_spectrum else spectrum,
    }
    tensors = {name: torch.view_as_real(x) if x.is_complex() else x for name, x in tensors.items()}
    elements = spectrum.numel()
    by_strides = {key: stride for name, x in tensors.items() for key, stride in strides(name, x, order).items()}

    def cost() -> Cost:
        moved = size(grad, mask, spectrum, grad_mask) + (size(spectrum) if with_spectrum else 0)
        return Cost((), flop=0, l2_bytes=moved, dram_bytes=moved)

    launch(
        complex_mask_backward_kernel,
        triton.cdiv(elements, BLOCK),
        cost,
        num_warps=4,
        p_grad=tensors["grad"],
        p_mask=tensors["mask"],
        p_spectrum=tensors["spectrum"],
        p_grad_mask=tensors["to_mask"],
        p_grad_spectrum=tensors["to_spectrum"],
        elements=elements,
        slow=spectrum.shape[order[1]],
        fast=spectrum.shape[order[2]],
        **by_strides,
        ACTIVATION=ACTIVATIONS[activation],
        COMPLEX_MASK=mask.is_complex(),
        SPECTRUM=with_spectrum,
        BLOCK=BLOCK,
    )
    return grad_mask, grad_spectrum


def _shapes(
    grad: Tensor, mask: Tensor, spectrum: Tensor, activation: str, with_spectrum: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mask), torch.empty_like(spectrum) if with_spectrum else spectrum.new_empty(0)


complex_mask_backward = operator("complex_mask_backward", launch_complex_mask_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    mask, spectrum, ctx.activation = inputs
    ctx.save_for_backward(mask, spectrum)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
    asked = ctx.needs_input_grad[1]
    grad_mask, grad_spectrum = complex_mask_backward(grad, *ctx.saved_tensors, ctx.activation, asked)
    return grad_mask, grad_spectrum if asked else None, None


complex_mask.register_autograd(_gradient, setup_context=_keep)
