"""The gradient of ``axis_layer``: of its input and of its twelve weights.

The forward pass keeps, beside its input and the packed projections, the attended rows, the softmax sums, the rows
between the two halves of the layer (``mid``) and which hidden units are open. Normalised rows are computed again. Five
launches and those of the attention (a narrow layer takes fewer, see ``_narrow_gradient``):

    grad_y -> feed_forward_gradient: through the second half to mid, and through the projection to the attended rows
           -> feed_forward_weights: up and down matrices;   weight_gradient: output projection
           -> the gradient of the attention
           -> norm_linear_gradient: through QKV and the first norm to x;   weight_gradient: QKV

Sums over rows are left by tile or part and added up at the end, without atomics. Layer norm's gradient: Ba et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.operations.axis_attention.backward import empty_statistics, launch_attention_gradient
from fastenh_kernels.operations.axis_layer.feed_forward_gradient import launch_feed_forward_gradient
from fastenh_kernels.operations.axis_layer.feed_forward_weights import launch_feed_forward_weights
from fastenh_kernels.operations.axis_layer.folding import launch_fold
from fastenh_kernels.operations.axis_layer.forward import axis_layer_forward, in_one_launch, sums_on_chip
from fastenh_kernels.operations.axis_layer.narrow_feed_forward_gradient import launch_narrow_feed_forward_gradient
from fastenh_kernels.operations.axis_layer.narrow_frequency_gradient import launch_narrow_frequency_gradient
from fastenh_kernels.operations.axis_layer.narrow_norm_linear_gradient import launch_narrow_norm_linear_gradient
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.launch import LARGE, Cost, dot_precision, launch, processors, shared_memory, size
from fastenh_kernels.shared.norm import EPS, row_of, standardise, through_norm
from fastenh_kernels.shared.operators import as_dtypes_of, like, operator, single
from fastenh_kernels.shared.rows import described, has_descriptors, load_rows, store_rows
from fastenh_kernels.shared.weight_gradient import launch_weight_gradient


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def norm_linear_gradient_kernel(
    p_grad_out,  # (rows, 3C), or its descriptor
    p_x,  # (rows, C), or its descriptor
    p_grad_mid,  # (rows, C), or its descriptor: what comes back past the layer's first half
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (3C, C)
    p_normed,  # (rows, C), or its descriptor, written
    p_grad_x,  # (rows, C), or its descriptor, written
    p_sums,  # (tiles, C), written: of the gradient of the norm's weight
    rows,
    tiles,
    programs,
    C: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_c = tl.arange(0, C)
    o_k = tl.arange(0, K)
    o_m = tl.arange(0, M)
    p_w = p_weight + o_c[:, None] * C + o_c[None, :]
    dtype: tl.constexpr = p_weight.dtype.element_ty
    if K == C:  # the matrices stay
        b_wq, b_wk, b_wv = tl.load(p_w), tl.load(p_w + C * C), tl.load(p_w + 2 * C * C)  # [C, C]
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, programs, disable_licm=True):
        if K == C:
            b_g = load_rows(p_grad_out, o_m, o_c, tile, 0, rows, 3 * C, DESCRIPTORS)
            b_dn = tl.dot(b_g, b_wq, input_precision=PRECISION)  # [M, C]
            b_g = load_rows(p_grad_out, o_m, o_c, tile, C, rows, 3 * C, DESCRIPTORS)
            b_dn = tl.dot(b_g, b_wk, b_dn, input_precision=PRECISION)
            b_g = load_rows(p_grad_out, o_m, o_c, tile, 2 * C, rows, 3 * C, DESCRIPTORS)
            b_dn = tl.dot(b_g, b_wv, b_dn, input_precision=PRECISION)
        else:
            b_dn = tl.zeros([M, C], tl.float32)
            for first in tl.range(0, 3 * C, K):
                b_w = tl.load(p_weight + (first + o_k)[:, None] * C + o_c[None, :])  # [K, C]
                b_g = load_rows(p_grad_out, o_m, o_k, tile, first, rows, 3 * C, DESCRIPTORS)
                b_dn = tl.dot(b_g, b_w, b_dn, input_precision=PRECISION)
        b_x = load_rows(p_x, o_m, o_c, tile, 0, rows, C, DESCRIPTORS).to(tl.float32)
        b_x, b_inverse = standardise(b_x, C, EPS)
        b_weight = row_of(p_norm_weight, o_c)
        b_n = (b_x * b_weight + row_of(p_norm_bias, o_c)).to(dtype)
        store_rows(p_normed, b_n, o_m, o_c, tile, 0, rows, C, DESCRIPTORS)
        tl.store(p_sums + tile * C + o_c, tl.sum(b_dn * b_x, 0))
        b_dx = load_rows(p_grad_mid, o_m, o_c, tile, 0, rows, C, DESCRIPTORS).to(tl.float32)
        b_dx += through_norm(b_dn, b_x, b_inverse, b_weight, C)
        store_rows(p_grad_x, b_dx.to(dtype), o_m, o_c, tile, 0, rows, C, DESCRIPTORS)


def launch_norm_linear_gradient(
    grad_out: Tensor, x: Tensor, grad_mid: Tensor, weights: AxisLayerWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of x, normalised rows of x, (tiles, C) sums)."""
    width = x.shape[3]
    rows = x.numel() // width
    descriptors = has_descriptors(x)
    m, k, warps = (16, 32, 8) if x.element_size() == 4 else (64, width, 4 if descriptors else 8)
    if shared_memory(x.device) <= LARGE:
        k = min(k, 64)
    tiles = triton.cdiv(rows, m)
    programs = min(tiles, 2 * processors(x.device))
    normed, grad_x = torch.empty_like(x), torch.empty_like(x)
    sums = torch.empty(tiles, width, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        matrix, moved = weights.qkv_weight, size(grad_out, x, grad_mid, normed, grad_x, sums)
        l2 = moved + (programs if k == width else tiles) * size(matrix)
        loops = (tiles / max(programs, 1), 3 * width // k)[: 1 if k == width else 2]
        return Cost(loops, flop=2 * rows * matrix.numel(), l2_bytes=l2, dram_bytes=moved + size(matrix))

    launch(
        norm_linear_gradient_kernel,
        programs,
        cost,
        num_warps=warps,
        num_stages=1,
        p_grad_out=described(grad_out, m, width, descriptors),
        p_x=described(x, m, width, descriptors),
        p_grad_mid=described(grad_mid, m, width, descriptors),
        p_norm_weight=weights.norm1_weight,
        p_norm_bias=weights.norm1_bias,
        p_weight=weights.qkv_weight.contiguous(),
        p_normed=described(normed, m, width, descriptors),
        p_grad_x=described(grad_x, m, width, descriptors),
        p_sums=sums,
        rows=rows,
        tiles=tiles,
        programs=programs,
        C=width,
        EPS=EPS,
        M=m,
        K=k,
        DESCRIPTORS=descriptors,
        PRECISION=dot_precision(x),
    )
    return grad_x, normed, sums


def launch_axis_layer_backward(
    grad_y: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
    history: int,
) -> list[Tensor]:
    """[grad_x, and the gradients of the twelve weights in float32]. ``kept``: of ``axis_layer_forward``, without y."""
    w = AxisLayerWeights(*weights).with_matrices_in(x.dtype)
    x, grad_y = x.contiguous(), grad_y.contiguous()
    if sums_on_chip(x, w, heads, dropout):
        return _narrow_gradient(grad_y, x, kept, w, heads, axis, history)
    attended, mid, qkv, lse, opened = kept
    statistics = empty_statistics(qkv, heads, axis, dropout, history)
    grad = launch_feed_forward_gradient(grad_y, mid, opened, attended, lse, statistics, w, heads, axis, dropout, seed)
    grad_up, grad_up_bias, grad_down = launch_feed_forward_weights(grad.normed, grad.dropped_y, w, dropout, seed)
    grad_out, grad_out_bias = launch_weight_gradient(_rows(grad.dropped_mid), _rows(attended))
    grad_qkv = launch_attention_gradient(grad.attended, qkv, statistics, heads, axis, dropout, seed, history)
    grad_x, normed, norm1_sums = launch_norm_linear_gradient(grad_qkv, x, grad.mid, w)
    grad_qkv_weight, grad_qkv_bias = launch_weight_gradient(_rows(grad_qkv), _rows(normed))
    grad_norm2_weight, grad_down_bias = (row.clone() for row in grad.sums.sum(0))  # an operator gives no views
    gradients = AxisLayerWeights(
        norm1_weight=norm1_sums.sum(0),
        # A norm's bias reaches the rows behind it through a matrix alone, and so does that matrix's own bias.
        norm1_bias=grad_qkv_bias @ w.qkv_weight.float(),
        qkv_weight=grad_qkv_weight,
        qkv_bias=grad_qkv_bias,
        out_weight=grad_out,
        out_bias=grad_out_bias,
        norm2_weight=grad_norm2_weight,
        norm2_bias=grad_up_bias @ w.up_weight.float(),
        up_weight=grad_up,
        up_bias=grad_up_bias,
        down_weight=grad_down,
        down_bias=grad_down_bias,
    )
    return [grad_x, *gradients]


def _narrow_gradient(
    grad_y: Tensor, x: Tensor, kept: Sequence[Tensor], weights: AxisLayerWeights, heads: int, axis: str, history: int
) -> list[Tensor]:
    """The same where the launches sum the gradients of matrices: two, or three with the attention by itself."""
    attended, mid, *others = kept
    if in_one_launch(x, weights, heads, axis, 0.0, history):
        qkv, up = others
        second = launch_narrow_feed_forward_gradient(grad_y, mid, attended, None, None, up, weights, heads, axis)
        grad_x, first = launch_narrow_frequency_gradient(second.attended, x, second.mid, qkv, weights, heads)
    else:
        projected, lse = others
        qkv, up = launch_fold(weights)
        statistics = empty_statistics(projected, heads, axis, 0.0, history)
        second = launch_narrow_feed_forward_gradient(grad_y, mid, attended, lse, statistics, up, weights, heads, axis)
        grad = launch_attention_gradient(second.attended, projected, statistics, heads, axis, 0.0, None, history)
        grad_x, first = launch_narrow_norm_linear_gradient(grad, x, second.mid, qkv, weights)
    return [grad_x, *AxisLayerWeights(**first, **second.weights)]


def _rows(x: Tensor) -> Tensor:
    """(B, T, F, C) -> (rows, C)."""
    return x.flatten(0, 2)


def _shapes(grad_y: Tensor, x: Tensor, kept: Sequence[Tensor], weights: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [like(x), *map(single, weights)]


axis_layer_backward = operator("axis_layer_backward", launch_axis_layer_backward, _shapes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, ctx.heads, ctx.axis, ctx.dropout, seed, ctx.history = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros for what is kept
    ctx.save_for_backward(seed, x, *output[1:], *weights)


def _gradient(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | list[Tensor] | None, ...]:
    seed, x, *saved = ctx.saved_tensors
    count = len(AxisLayerWeights._fields)
    kept, weights = saved[:-count], saved[-count:]
    gradients = axis_layer_backward(grads[0], x, kept, weights, ctx.heads, ctx.axis, ctx.dropout, seed, ctx.history)
    return gradients[0], as_dtypes_of(gradients[1:], weights), None, None, None, None, None


axis_layer_forward.register_autograd(_gradient, setup_context=_keep)
