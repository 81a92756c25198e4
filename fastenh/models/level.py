"""The level that a model sees: an RMS of 1, over the whole waveform or, in a causal model, over what has been heard."""

from __future__ import annotations

import torch
from torch import Tensor

SILENCE_RMS = 1e-7  # -140 dBFS: below 24-bit dither, scaled no further
ATTACK, RELEASE = 0.2, 2.0  # seconds: time constants of the two means of the power
_BLOCK = 512  # frames, whose powers meet in one product


def level_of(waveform: Tensor) -> Tensor:
    """The RMS of each (B, L) waveform, (B, 1), and no less than that of silence: what it is divided by for a model."""
    root = torch.linalg.vector_norm(waveform, dim=-1, keepdim=True) * waveform.shape[-1] ** -0.5
    return root.clamp_min(SILENCE_RMS)


def before_sound(batch: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The state of ``running_level`` before the first frame: (B, 2, 2), each mean's sum and the sum of its weights."""
    return torch.zeros(batch, 2, 2, device=device, dtype=dtype)


def running_level(power: Tensor, state: Tensor, frames_per_second: float) -> tuple[Tensor, Tensor]:
    """Powers of frames (B, T) and a state -> the RMS (B, T) up to each of them, and the state behind the last one.

    It is the larger of a quick mean of the power and of a slow one: the quick one follows a rise with a time constant
    of ``ATTACK``, in a pause the slow one holds the level for ``RELEASE``. Both means are exponential and weighted over
    what has been heard so far, so that the first frames count at once (the bias correction of Kingma and Ba 2015,
    "Adam"). Frames may come in any portions.
    """
    rates = [-1 / (seconds * frames_per_second) for seconds in (ATTACK, RELEASE)]
    levels = []
    for block in power.split(_BLOCK, dim=1):
        heard = torch.stack([block, torch.ones_like(block)], -1)  # (B, T, 2)
        if block.shape[1] == 1:  # a hop of live sound: the same in few steps
            state = block.new_tensor(rates).exp().unsqueeze(1) * state + heard
            levels.append((state[..., 0] / state[..., 1]).amax(1, keepdim=True).clamp_min(SILENCE_RMS**2).sqrt())
            continue
        frames = torch.arange(block.shape[1], device=power.device, dtype=power.dtype)
        age = frames.unsqueeze(1) - frames  # of the frame in a column, seen from that in a row
        sums = []
        for number, rate in enumerate(rates):  # as numbers: a CUDA graph of a training step takes no tensor of them
            weights = torch.where(age >= 0, torch.exp(rate * age.clamp_min(0.0)), 0.0)  # (T, T)
            faded = torch.exp(rate * (frames.unsqueeze(1) + 1)) * state[:, number : number + 1]  # (B, T, 2)
            with torch.autocast(power.device.type, enabled=False):
                sums.append(weights @ heard + faded)
        state = torch.stack([total[:, -1] for total in sums], 1)
        mean = torch.maximum(*(total[..., 0] / total[..., 1] for total in sums))
        levels.append(mean.clamp_min(SILENCE_RMS**2).sqrt())
    return torch.cat(levels, 1), state
