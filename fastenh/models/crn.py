"""The convolutional recurrent network: the origin's first working model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastenh_kernels
from fastenh.models.blocks import convolve_normalise, initialise


@dataclass(frozen=True)
class CRNConfig:
    channels: tuple[int, ...] = (64, 128, 256)
    decoder_channels: tuple[int, ...] = (128, 64, 32)
    recurrent_layers: int = 2
    dropout: float = 0.1
    hop: int = 256


class CRN(nn.Module):
    """Convolutions along frequency, an LSTM over the frames of each remaining band, transposed convolutions back."""

    encoder: Iterable[Any]  # of nn.Conv2d; a ModuleList promises no more than modules
    encoder_norms: Iterable[Any]  # of nn.BatchNorm2d

    def __init__(self, config: CRNConfig) -> None:
        super().__init__()
        widths = (1, *config.channels)
        pairs = list(pairwise(widths))
        self.encoder = nn.ModuleList(nn.Conv2d(i, o, 3, stride=(2, 1), padding=1) for i, o in pairs)
        self.encoder_norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
        width = config.channels[-1]
        self.recurrent = nn.LSTM(width, width, config.recurrent_layers, batch_first=True, dropout=config.dropout)
        widths = (width, *config.decoder_channels)
        pairs = list(pairwise(widths))
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 3, stride=(2, 1), padding=1, output_padding=(1, 0)) for i, o in pairs
        )
        self.decoder_norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
        self.head = nn.Conv2d(config.decoder_channels[-1], 1, 1)
        self.apply(initialise)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        x = torch.log1p(spectrum.abs()).unsqueeze(1)
        for conv, norm in zip(self.encoder, self.encoder_norms, strict=True):
            x = convolve_normalise(conv, norm, x).relu()
        b, channels, bands, frames = x.shape
        sequences = x.permute(0, 2, 3, 1).reshape(b * bands, frames, channels)
        x = self.recurrent(sequences)[0].view(b, bands, frames, channels).permute(0, 3, 1, 2)
        for conv, norm in zip(self.decoder, self.decoder_norms, strict=True):
            x = norm(conv(x)).relu()
        x = F.interpolate(x, size=spectrum.shape[1:], mode="bilinear", align_corners=False)
        logits = self.head(x).squeeze(1).to(spectrum.real.dtype)
        return fastenh_kernels.complex_mask(logits, spectrum, "sigmoid")
