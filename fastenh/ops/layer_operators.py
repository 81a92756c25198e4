"""The transformer layer and its attention as PyTorch operators.

Each has a form that keeps what its gradient needs, and the gradient as an operator of its own, so that
``torch.compile`` and ``torch.export`` take each as a whole. Gradients of weights leave the kernels in float32 and take
the dtype of the weight here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastenh_kernels
import torch
from torch import Tensor


@torch.library.custom_op("fastenh::axis_attention", mutates_args=())
def axis_attention(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_attention(qkv, heads, axis)


@axis_attention.register_fake
def _(qkv: Tensor, heads: int, axis: str) -> Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@torch.library.custom_op("fastenh::axis_attention_forward", mutates_args=())
def axis_attention_forward(
    qkv: Tensor, heads: int, axis: str, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    return fastenh_kernels.axis_attention_forward(qkv, heads, axis, dropout, seed)


@axis_attention_forward.register_fake
def _(qkv: Tensor, heads: int, axis: str, dropout: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)), _softmax_sums(qkv, heads, axis)


@torch.library.custom_op("fastenh::axis_attention_backward", mutates_args=())
def axis_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
) -> Tensor:
    return fastenh_kernels.axis_attention_backward(grad, qkv, out, lse, heads, axis, dropout, seed)


@axis_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv)


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.heads, ctx.axis, ctx.dropout, seed = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, *output, seed)


def _attention_gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *kept, seed = ctx.saved_tensors
    return axis_attention_backward(grad, *kept, ctx.heads, ctx.axis, ctx.dropout, seed), None, None, None, None


axis_attention_forward.register_autograd(_attention_gradient, setup_context=_keep_attention)


@torch.library.custom_op("fastenh::axis_layer", mutates_args=())
def axis_layer(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    return fastenh_kernels.axis_layer(x, weights, heads, axis)


@axis_layer.register_fake
def _(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("fastenh::axis_layer_forward", mutates_args=())
def axis_layer_forward(
    x: Tensor, weights: Sequence[Tensor], heads: int, axis: str, dropout: float, seed: Tensor | None
) -> list[Tensor]:
    return fastenh_kernels.axis_layer_forward(x, weights, heads, axis, dropout, seed)


@axis_layer_forward.register_fake
def _(x: Tensor, weights: Sequence[Tensor], heads: int, axis: str, dropout: float, seed: Tensor | None) -> list[Tensor]:
    y, attended, mid = (x.new_empty(x.shape) for _ in range(3))
    qkv = x.new_empty((*x.shape[:3], 3 * x.shape[3]))
    return [y, qkv, attended, _softmax_sums(qkv, heads, axis), mid]


@torch.library.custom_op("fastenh::axis_layer_backward", mutates_args=())
def axis_layer_backward(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    heads: int,
    axis: str,
    dropout: float,
    seed: Tensor | None,
) -> list[Tensor]:
    return fastenh_kernels.axis_layer_backward(grad, x, kept, weights, heads, axis, dropout, seed)


@axis_layer_backward.register_fake
def _(grad: Tensor, x: Tensor, kept: Sequence[Tensor], weights: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(w.new_empty(w.shape, dtype=torch.float32) for w in weights)]


def _keep_layer(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, ctx.heads, ctx.axis, ctx.dropout, seed = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros for what is kept
    ctx.save_for_backward(seed, x, *output[1:], *weights)


def _layer_gradient(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, list[Tensor], None, None, None, None]:
    seed, x, *kept = ctx.saved_tensors
    kept, weights = kept[:4], kept[4:]
    gradients = axis_layer_backward(grads[0], x, kept, weights, ctx.heads, ctx.axis, ctx.dropout, seed)
    of_weights = [g.to(w.dtype) for g, w in zip(gradients[1:], weights, strict=True)]
    return gradients[0], of_weights, None, None, None, None


axis_layer_forward.register_autograd(_layer_gradient, setup_context=_keep_layer)


def _softmax_sums(qkv: Tensor, heads: int, axis: str) -> Tensor:
    b, t, f, _ = qkv.shape
    inner, length = (t, f) if axis == "frequency" else (f, t)
    return qkv.new_empty((b * inner * heads, length), dtype=torch.float32)
