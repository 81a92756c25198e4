"""Training losses on waveforms. All of them see the pair at the level at which the model saw it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastenh_kernels
from fastenh.data.settings import Fraction, Weight
from fastenh.models.frontend import Frontend
from fastenh.train.disturbance import Disturbance

_LEVEL = 0.1  # RMS of the noisy waveform inside the loss; the term weights are meant for it
_EPS = 1e-8
_RESOLUTIONS = (256, 512, 1024)  # samples


@dataclass(frozen=True)
class LossConfig:
    """Weight of each term; 0 leaves it out."""

    log_magnitude: Weight = 0.0
    compressed_magnitude: Weight = 70.0
    compressed_complex: Weight = 30.0
    si_sdr: Weight = 1.0
    multi_resolution: Weight = 0.0
    consistency: Weight = 0.0
    disturbance: Weight = 0.0
    compression: Fraction = 0.3  # the power of the compressed spectra


def si_sdr_loss(estimate: Tensor, clean: Tensor) -> Tensor:
    """Negative SI-SDR in bel (dB / 10) of each (B, L) pair: Le Roux et al. 2019, "SDR - half-baked or well done?".

    The clean side is a constant.
    """
    return _SISDR.apply(estimate, clean)


class _SISDR(torch.autograd.Function):
    """The gradient is a sum of both waveforms with a factor for each clip, which takes one pass over them."""

    @staticmethod
    def forward(ctx: Any, estimate: Tensor, clean: Tensor) -> Tensor:
        energy = _energy(clean)
        along = (estimate * clean).sum(-1)
        scale = along / (energy + _EPS)
        noise = _energy(torch.addcmul(estimate, scale.unsqueeze(-1), clean, value=-1)) + _EPS
        target = scale.square() * energy + _EPS
        # (noise, clean) / (energy + eps) and the derivative of the target's energy, both along the clean side
        left = (along - scale * energy) / (energy + _EPS)
        of_clean = -(scale + left) / noise - scale * energy / ((energy + _EPS) * target)
        ctx.save_for_backward(estimate, clean, 1 / noise, of_clean)
        return torch.log10(noise / target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        estimate, clean, *factors = ctx.saved_tensors
        of_estimate, of_clean = ((2 / math.log(10) * grad * factor).unsqueeze(-1) for factor in factors)
        return torch.addcmul(of_estimate * estimate, of_clean, clean), None


def _energy(waveform: Tensor) -> Tensor:
    """(B, L) -> (B,): the sum of squares, without writing them down."""
    return torch.linalg.vector_norm(waveform, dim=-1).square()


def multi_resolution_loss(estimate: Tensor, clean: Tensor) -> Tensor:
    """(B,): spectral convergence and the L1 distance of log magnitudes, mean over three resolutions of the STFT.

    Yamamoto et al. 2020, "Parallel WaveGAN", equations 4 to 6, with windows of 16, 32 and 64 ms and a quarter as hop.
    """
    total = estimate.new_zeros(estimate.shape[0])
    for size in _RESOLUTIONS:
        ours, theirs = (_magnitude(x, size) for x in (estimate, clean))
        convergence = (theirs - ours).norm(dim=(1, 2)) / theirs.norm(dim=(1, 2)).clamp_min(_EPS)
        total = total + convergence + (ours.log() - theirs.log()).abs().mean((1, 2))
    return total / len(_RESOLUTIONS)


def _magnitude(waveform: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(waveform, size, size // 4, window=window, pad_mode="constant", return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(-1) + _EPS).sqrt()


def consistency_loss(spectrum: Tensor, waveform: Tensor, frontend: Frontend) -> Tensor:
    """(B,): mean squared distance between a masked spectrum and the STFT of the waveform it became.

    0 where the spectrum is one that a waveform can have (Le Roux et al. 2008, "Explicit consistency constraints for
    STFT spectrograms"; Wisdom et al. 2019, "Differentiable consistency constraints for improved deep speech
    enhancement").
    """
    difference = torch.view_as_real(spectrum - frontend.stft(waveform))
    return difference.square().sum(-1).mean((1, 2))


class EnhancementLoss(nn.Module):
    """Weighted sum of the terms of ``LossConfig``, each a mean over the clips.

    - log_magnitude: L1 between log1p|S| (the origin's loss)
    - compressed_magnitude, compressed_complex: mean squared error of power-law compressed spectra (``spectral_loss``)
    - si_sdr: negative SI-SDR in bel; clips whose clean side is silent count as 0
    - multi_resolution: ``multi_resolution_loss``; clips whose clean side is silent count as 0
    - consistency: ``consistency_loss`` of the spectrum that the model's mask left, where it is given
    - disturbance: what PESQ would take off (``Disturbance``); clips whose clean side is silent count as 0
    """

    def __init__(self, config: LossConfig, hop: int = 256) -> None:
        """hop: of the model whose spectrum ``consistency`` sees."""
        super().__init__()
        self.config = config
        self.frontend, self.model_frontend = Frontend(), Frontend(hop)
        self.disturbance = Disturbance() if config.disturbance else None

    def forward(self, estimate: Tensor, clean: Tensor, noisy: Tensor, spectrum: Tensor | None = None) -> Tensor:
        """Three (B, L) waveforms -> scalar. spectrum: (B, 257, T) that became ``estimate``, for a noisy RMS of 1."""
        config = self.config
        rms = torch.linalg.vector_norm(noisy, dim=-1, keepdim=True) / noisy.shape[-1] ** 0.5
        gain = _LEVEL / rms.clamp_min(1e-6)
        estimate, clean = estimate * gain, clean * gain
        speech = clean.any(-1)
        loss = estimate.new_zeros(())
        if config.si_sdr:
            loss = loss + config.si_sdr * (si_sdr_loss(estimate, clean) * speech).mean()
        if config.multi_resolution:
            loss = loss + config.multi_resolution * (multi_resolution_loss(estimate, clean) * speech).mean()
        if config.consistency and spectrum is not None:
            loss = loss + config.consistency * consistency_loss(spectrum * _LEVEL, estimate, self.model_frontend).mean()
        if self.disturbance is not None:
            loss = loss + config.disturbance * (self.disturbance(estimate, clean) * speech).mean()
        return loss + self._spectral(self.frontend.stft(estimate), self.frontend.stft(clean))

    def _spectral(self, estimate: Tensor, clean: Tensor) -> Tensor:
        config = self.config
        loss = torch.zeros((), device=estimate.device)
        if config.log_magnitude:
            difference = torch.log1p(estimate.abs()) - torch.log1p(clean.abs())
            loss = loss + config.log_magnitude * difference.abs().mean()
        if config.compressed_magnitude or config.compressed_complex:
            weights = config.compressed_magnitude, config.compressed_complex
            loss = loss + fastenh_kernels.spectral_loss(estimate, clean, *weights, config.compression)
        return loss
