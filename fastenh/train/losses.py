"""Training losses on waveforms. All of them see the pair at the level at which the model saw it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastenh.models.frontend import Frontend

_LEVEL = 0.1  # RMS of the noisy waveform inside the loss; the term weights are meant for it
_EPS = 1e-8


@dataclass(frozen=True)
class LossConfig:
    """Weight of each term; 0 leaves it out."""

    log_magnitude: float = 0.0
    compressed_magnitude: float = 70.0
    compressed_complex: float = 30.0
    si_sdr: float = 1.0
    compression: float = 0.3


def si_sdr_loss(estimate: Tensor, clean: Tensor) -> Tensor:
    """Negative SI-SDR in bel (dB / 10) of each (B, L) pair: Le Roux et al. 2019, "SDR - half-baked or well done?"."""
    scale = (estimate * clean).sum(-1, keepdim=True) / (clean.square().sum(-1, keepdim=True) + _EPS)
    target = scale * clean
    noise = estimate - target
    return -torch.log10((target.square().sum(-1) + _EPS) / (noise.square().sum(-1) + _EPS))


def _compress(spectrum: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """|S|^p, and S |S|^(p - 1) as real pairs; finite gradients at 0."""
    pairs = torch.view_as_real(spectrum)
    magnitude = (pairs.square().sum(-1) + _EPS).sqrt()
    return magnitude**power, pairs * (magnitude ** (power - 1)).unsqueeze(-1)


class EnhancementLoss(nn.Module):
    """Weighted sum of the terms of ``LossConfig``.

    - log_magnitude: L1 between log1p|S| (the origin's loss)
    - compressed_magnitude, compressed_complex: mean squared error of power-law compressed spectra
      (Braun and Tashev 2021, "A consolidated view of loss functions for supervised deep learning-based speech
      enhancement")
    - si_sdr: negative SI-SDR in bel; pairs whose clean side is silent are left out
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend = Frontend()

    def forward(self, estimate: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """Three (B, L) waveforms -> scalar."""
        config = self.config
        gain = _LEVEL / noisy.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        estimate, clean = estimate * gain, clean * gain
        loss = estimate.new_zeros(())
        if config.si_sdr:
            speech = (clean.abs().amax(-1) > 0).float()
            loss = loss + config.si_sdr * (si_sdr_loss(estimate, clean) * speech).mean()
        return loss + self._spectral(self.frontend.stft(estimate), self.frontend.stft(clean))

    def _spectral(self, estimate: Tensor, clean: Tensor) -> Tensor:
        config = self.config
        loss = estimate.real.new_zeros(())
        if config.log_magnitude:
            difference = torch.log1p(estimate.abs()) - torch.log1p(clean.abs())
            loss = loss + config.log_magnitude * difference.abs().mean()
        if config.compressed_magnitude or config.compressed_complex:
            magnitude, pairs = _compress(estimate, config.compression)
            clean_magnitude, clean_pairs = _compress(clean, config.compression)
            loss = loss + config.compressed_magnitude * (magnitude - clean_magnitude).square().mean()
            # mean over bins of the squared complex distance (sum of the real and the imaginary part)
            loss = loss + config.compressed_complex * 2 * (pairs - clean_pairs).square().mean()
        return loss
