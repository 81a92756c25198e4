"""How good a model is between epochs: the loss on all validation pairs, the metrics on a few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastenh.evaluate import metrics
from fastenh.train.losses import EnhancementLoss


def validate(
    model: nn.Module,
    loss: EnhancementLoss,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    scored: int,
    device: torch.device,
) -> dict[str, float]:
    """ "loss", and "pesq", "stoi", "si_sdr" where they can be computed; the model is put in evaluation for it.

    The metrics are of ``scored`` pairs, evenly spaced.
    """
    was_training = model.training
    model.eval()
    chosen = set(range(0, len(pairs), max(1, -(-len(pairs) // scored)))) if scored else set()
    losses: list[float] = []
    values: dict[str, list[float]] = {}
    with torch.no_grad():
        for index, (noisy, clean) in enumerate(pairs):
            noisy_batch, clean_batch = (_batch(x, device) for x in (noisy, clean))
            enhanced = model(noisy_batch).float()
            losses.append(loss(enhanced, clean_batch, noisy_batch).item())
            if index in chosen:
                for metric, value in metrics.score(enhanced[0].cpu().numpy(), clean, metrics.available()).items():
                    if isinstance(value, float):
                        values.setdefault(metric, []).append(value)
    model.train(was_training)
    return {"loss": float(np.mean(losses)), **{metric: float(np.mean(v)) for metric, v in values.items()}}


def _batch(samples: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(samples)).to(device).unsqueeze(0)
