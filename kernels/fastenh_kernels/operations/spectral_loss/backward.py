"""The gradient of ``spectral_loss``: the forward launch has found it, the way back scales it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastenh_kernels.operations.spectral_loss.forward import spectral_loss_operator


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the gradient that is kept


def _gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    (found,) = ctx.saved_tensors
    return torch.view_as_complex(torch.view_as_real(found) * grad), None, None, None, None, None


spectral_loss_operator.register_autograd(_gradient, setup_context=_keep)
