"""Batch statistics over all processes of a training, as one process with the whole batch would have them.

``torch.nn.SyncBatchNorm`` does this on CUDA alone, and only for modules that hold their own batch norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def processes() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """(...) of every process -> (processes, ...) on each. The gradient of a process's part is the sum over all."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def _gathered(local: Tensor) -> Tensor:
    """A collective with a gradient of its own: a compiled graph is cut here.

    Not by a decorator: that imports the compiler, seconds that nobody needs who does not train on several devices.
    """
    return torch.compiler.disable(_Gather.apply)(local)


def moments_of_all(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, each (C,), of one process -> of the samples of all, equally many in each.

    The variance is that within the processes plus that of their means: no difference of large squares.
    """
    if processes() == 1:
        return mean, var
    means, variances = _gathered(torch.stack([mean, var])).unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def update_running(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Let the running moments follow those of ``count`` samples, whose variance is biased."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / max(count - 1, 1)), norm.momentum)
    norm.num_batches_tracked += 1


class JointBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose statistics in training are those of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), (0, 2, 3), correction=0)
        mean, var = moments_of_all(mean, var)
        with torch.no_grad():
            update_running(self, mean, var, processes() * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift.to(x.dtype).view(-1, 1, 1), x, scale.to(x.dtype).view(-1, 1, 1))


def join_batch_norms(model: nn.Module) -> None:
    """Make every ``nn.BatchNorm2d`` below ``model`` a joint one; parameters and buffers stay the same objects."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JointBatchNorm2d
