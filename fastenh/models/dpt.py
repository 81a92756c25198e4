"""The dual-path transformer: attention over the bands of a frame, then over the frames of a band."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh import ops
from fastenh.models.blocks import AxisLayer, fold_batch_norm, initialise


@dataclass(frozen=True)
class DPTConfig:
    channels: int = 128
    front_channels: int = 32
    head_channels: int = 64
    heads: int = 4
    feed_forward: int = 512
    blocks: int = 2
    dropout: float = 0.1
    hop: int = 256


class DPT(nn.Module):
    """Core of the dual-path transformer (the origin's fourth model, 904,705 parameters)."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        c, front, head = config.channels, config.front_channels, config.head_channels
        self.front = nn.Conv2d(1, front, 3, stride=(2, 1), padding=1)
        self.front_norm = nn.BatchNorm2d(front)
        self.encoder = nn.Conv2d(front, c, 3, stride=(2, 1), padding=1)
        self.encoder_norm = nn.BatchNorm2d(c)
        layer = (c, config.heads, config.feed_forward, config.dropout)
        axes = ("frequency", "time") * config.blocks
        self.layers = nn.ModuleList(AxisLayer(*layer, axis) for axis in axes)
        self.decoder = nn.Conv2d(c, head, 3, padding=1)
        self.decoder_norm = nn.BatchNorm2d(head)
        self.head = nn.Conv2d(head, 1, 1)
        self.apply(initialise)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        x = skip = self._encode(spectrum)
        for layer in self.layers:
            x = layer(x)
        z = ops.decoder_taps(x + skip, self.decoder.weight)
        scale, shift = self._decoder_affine(z, spectrum.shape[1])
        return ops.mask_head(z, scale, shift, self.head.weight, self.head.bias, spectrum)

    def _encode(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> (B, T, 65, C). Kernels are stored (out, in, frequency, time) and turned here."""
        x = ops.encoder_front(spectrum, *self._folded(self.front, self.front_norm)).permute(0, 3, 1, 2)
        x = (self.front_norm(x) if self.training else x).relu()
        weight, bias = self._folded(self.encoder, self.encoder_norm)
        x = F.conv2d(x, weight.transpose(2, 3), bias, stride=(1, 2), padding=1)
        x = (self.encoder_norm(x) if self.training else x).relu()
        return x.permute(0, 2, 3, 1).contiguous()

    def _folded(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        return (conv.weight, conv.bias) if self.training else fold_batch_norm(conv, norm)

    def _decoder_affine(self, z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        """Scale and shift that fold the decoder's bias and batch norm; in training, from the batch's moments."""
        norm = self.decoder_norm
        if self.training:
            mean, var = ops.upsampled_moments(z, bins)
            with torch.no_grad():
                count = z.shape[0] * z.shape[1] * bins
                norm.running_mean.lerp_(mean + self.decoder.bias, norm.momentum)
                norm.running_var.lerp_(var * (count / max(count - 1, 1)), norm.momentum)
                norm.num_batches_tracked += 1
        else:
            mean, var = norm.running_mean - self.decoder.bias, norm.running_var
        scale = norm.weight * torch.rsqrt(var + norm.eps)
        return scale, norm.bias - mean * scale
