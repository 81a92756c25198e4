"""The origin's two transformers over time: one on STFT bins, one on mel bands.

Both average the convolutional features over frequency before the transformer, so what reaches the decoder is one
vector a frame, repeated over the bins: the mask can hardly differ between them. That is why they fell behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

import fastenh_kernels
from fastenh.models.blocks import AxisLayer, convolve_normalise, initialise
from fastenh.models.frontend import Frontend
from fastenh.models.mel import griffin_lim, invert_mel, mel_filter_bank, normalised_transpose


@dataclass(frozen=True)
class STFTTransformerConfig:
    channels: tuple[int, ...] = (64, 128, 256)
    heads: int = 4
    feed_forward: int = 1024
    layers: int = 2
    dropout: float = 0.1
    hop: int = 256


@dataclass(frozen=True)
class MelTransformerConfig(STFTTransformerConfig):
    bands: int = 128
    # "griffin_lim" is how the origin went back to a waveform; kept to show what it costs
    reconstruction: Literal["gain", "griffin_lim"] = "gain"


class _FrameTransformer(nn.Module):
    """(B, 1, bins, T) features -> (B, bins, T) mask logits."""

    def __init__(self, config: STFTTransformerConfig, head_size: int) -> None:
        super().__init__()
        width = config.channels[-1]
        self.encoder, self.encoder_norms = _conv_stack((1, *config.channels))
        self.embed = nn.Linear(width, width)
        layer = (width, config.heads, config.feed_forward, config.dropout)
        self.layers = nn.ModuleList(AxisLayer(*layer, axis="time") for _ in range(config.layers))
        self.project = nn.Linear(width, width)
        self.decoder, self.decoder_norms = _conv_stack(config.channels[::-1])
        self.head = nn.Conv2d(config.channels[0], 1, head_size, padding=head_size // 2)
        self.apply(initialise)

    def forward(self, features: Tensor) -> Tensor:
        bins = features.shape[2]
        x = _run_stack(self.encoder, self.encoder_norms, features).mean(2).transpose(1, 2)  # (B, T, C)
        x = self.embed(x)
        x = (x + sinusoidal_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)).unsqueeze(2)
        for layer in self.layers:
            x = layer(x)
        x = self.project(x).permute(0, 3, 2, 1).expand(-1, -1, bins, -1)  # (B, C, bins, T)
        return self.head(_run_stack(self.decoder, self.decoder_norms, x)).squeeze(1)


class STFTTransformer(nn.Module):
    """The frame transformer on the 257 bins of log1p|X|."""

    def __init__(self, config: STFTTransformerConfig) -> None:
        super().__init__()
        self.body = _FrameTransformer(config, head_size=3)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        logits = self.body(torch.log1p(spectrum.abs()).unsqueeze(1))
        return fastenh_kernels.complex_mask(logits.to(spectrum.real.dtype), spectrum, "sigmoid")


class MelTransformer(nn.Module):
    """The frame transformer on log1p of a mel power spectrogram; its mask per band becomes a gain per bin."""

    bank: Tensor
    spread: Tensor

    def __init__(self, config: MelTransformerConfig) -> None:
        super().__init__()
        if config.reconstruction not in ("gain", "griffin_lim"):
            raise ValueError(f"reconstruction must be 'gain' or 'griffin_lim', not {config.reconstruction!r}")
        self.body = _FrameTransformer(config, head_size=1)
        self.reconstruction = config.reconstruction
        self.frontend = Frontend(config.hop)
        bank = mel_filter_bank(config.bands)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("spread", normalised_transpose(bank), persistent=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        power = torch.view_as_real(spectrum).square().sum(-1)
        mel = torch.matmul(self.bank.T.to(power.dtype), power)
        mask = torch.sigmoid(self.body(torch.log1p(mel).unsqueeze(1)).to(power.dtype))
        if self.reconstruction == "griffin_lim":
            return griffin_lim(invert_mel(mask * mel, self.bank).sqrt(), self.frontend)
        return fastenh_kernels.complex_mask(torch.matmul(self.spread.T.to(power.dtype), mask), spectrum, "none")


def sinusoidal_positions(length: int, channels: int, device: torch.device) -> Tensor:
    """(length, channels) of Vaswani et al. 2017, for the length at hand (the origin's table ended at 512 frames)."""
    position = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(1)
    step = torch.arange(0, channels, 2, device=device, dtype=torch.float32)
    angle = position * torch.exp(step * (-math.log(10_000.0) / channels))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def _conv_stack(widths: tuple[int, ...]) -> tuple[nn.ModuleList, nn.ModuleList]:
    pairs = list(pairwise(widths))
    convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
    return convs, nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)


def _run_stack(convs: Iterable[Any], norms: Iterable[Any], x: Tensor) -> Tensor:
    for conv, norm in zip(convs, norms, strict=True):
        x = convolve_normalise(conv, norm, x).relu()
    return x
