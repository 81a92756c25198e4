"""Training on several devices: a process each, started by ``torchrun``; every one has a share of each batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastenh.data.feed import Share
from fastenh.errors import UsageError
from fastenh.models.batch_norm import processes


class RankError(UsageError, ValueError):
    """Processes that cannot train together."""


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Share, torch.device]]:
    """This process's share and device, in the group that ``torchrun`` started; without it, all of the work.

    NCCL on CUDA (one device a process), gloo elsewhere. Raises ``RankError``.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield Share(), device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise RankError(
                f"torchrun: {local + 1} processes or more, but {count} CUDA devices; a process for each device"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Share(dist.get_rank(), ranks), device
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace the gradients by their mean over all processes; returns that of ``loss``, a scalar.

    One all-reduce of a flat copy: the models are of a few megabytes, so there is nothing to gain from overlapping it
    with the backward pass in buckets as ``DistributedDataParallel`` does.
    """
    if processes() == 1:
        return loss
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([loss.reshape(1), *(g.flatten() for g in grads)])
    dist.all_reduce(flat)
    flat /= processes()
    parts = flat[1:].split([g.numel() for g in grads])
    torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(parts, grads, strict=True)])
    return flat[0]


def agree(flag: bool, device: torch.device) -> bool:
    """Say whether a flag is set in any of the processes."""
    if processes() == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def from_first(value: Any) -> Any:
    """Return what the first process has, in all of them."""
    if processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
