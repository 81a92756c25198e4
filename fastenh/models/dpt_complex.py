"""The narrow dual-path transformer with a complex mask: few bands, few channels, compressed spectra."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.models.blocks import AxisLayer, convolve_normalise

_STRIDE = 4  # bins a convolved band
_EPS = 1e-10  # of the power: finite gradients at 0


@dataclass(frozen=True)
class DPTComplexConfig:
    channels: int = 64  # of the dual path
    conv_channels: int = 32  # of the convolutions along frequency around it
    convolutions: int = 2  # on either side of the dual path
    bands: int = 32
    heads: int = 2
    feed_forward: int = 128
    blocks: int = 3
    taps: int = 7  # frames under the depthwise convolution before attention over time
    dropout: float = 0.0
    compression: float = 0.3  # the power of the magnitudes that are seen and masked
    causal: bool = False  # no convolution looks ahead
    history: int = 0  # frames that attention over time sees, the present one included; 0 for the whole window
    hop: int = 256


class DPTComplex(nn.Module):
    """Core of ``dpt_complex``: attention over time, then over bands, between convolutions along frequency.

    The spectrum is compressed (|X|^0.3, its phase kept) and masked in that domain, so the result is not
    ``mask * X``. The bin at half of the sampling rate is left out and comes back as zero.
    """

    def __init__(self, config: DPTComplexConfig) -> None:
        super().__init__()
        c, wide = config.channels, config.conv_channels
        self.compression = config.compression
        self.frames = (2, 0) if config.causal else (1, 1)  # of padding around the convolutions over 3 frames
        self.front = nn.Conv2d(3, wide, (8, 3), stride=(_STRIDE, 1), padding=(2, 0), bias=False)
        self.front_norm = nn.BatchNorm2d(wide)
        self.encoder = nn.ModuleList(FrequencyConv(wide, wide, 3) for _ in range(config.convolutions))
        to_bands, from_bands = band_matrices(config.bands)
        self.to_bands, self.from_bands = nn.Parameter(to_bands), nn.Parameter(from_bands)
        self.enter, self.leave = nn.Linear(wide, c), nn.Linear(c, wide)
        self.positions = nn.Parameter(torch.zeros(config.bands, c))
        self.layers = nn.ModuleList()
        for _ in range(config.blocks):
            self.layers.append(TimeLayer(config))
            self.layers.append(AxisLayer(c, config.heads, config.feed_forward, config.dropout, "frequency"))
        self.mix = nn.ModuleList(FrequencyConv(2 * wide, wide, 1) for _ in range(config.convolutions + 1))
        self.decoder = nn.ModuleList(FrequencyConv(wide, wide, 3) for _ in range(config.convolutions))
        self.head = nn.ConvTranspose2d(wide, 2, (8, 3), stride=(_STRIDE, 1), padding=(2, 0))
        self._initialise()

    def _initialise(self) -> None:
        """Quiet residual branches, and a mask that begins near one half: training starts from a plain attenuator."""
        with torch.no_grad():
            for layer in self.layers:
                layer = layer.attention if isinstance(layer, TimeLayer) else layer
                layer.out.weight.mul_(0.5)
                layer.down.weight.mul_(0.5)
            self.head.weight.mul_(0.3)
            self.head.bias.copy_(torch.tensor([0.5, 0.0]))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        compressed, magnitude = compress(spectrum[:, :-1], self.compression)
        x = torch.cat([compressed, magnitude.unsqueeze(1)], 1)
        x = F.pad(x, self.frames).contiguous(memory_format=torch.channels_last)
        x = F.silu(convolve_normalise(self.front, self.front_norm, x))
        skips = [x]
        for convolution in self.encoder:
            x = convolution(x)
            skips.append(x)
        x = self._dual_path(x)
        for mix, convolution in zip(self.mix, self.decoder, strict=False):
            x = convolution(mix(torch.cat([x, skips.pop()], 1)))
        x = self.mix[-1](torch.cat([x, skips.pop()], 1))
        first = self.frames[1]  # a transposed convolution gives 2 frames more, on the side of the padding
        mask = self.head(x)[..., first : first + spectrum.shape[-1]]
        return expand(F.pad(multiply(mask, compressed), (0, 0, 0, 1)), self.compression)

    def _dual_path(self, x: Tensor) -> Tensor:
        """(B, C', 64, T) -> (B, C', 64, T), in between (B, T, bands, C)."""
        y = self.enter(torch.matmul(self.to_bands, x.permute(0, 3, 2, 1))) + self.positions
        for layer in self.layers:
            y = layer(y)
        y = torch.matmul(self.from_bands, self.leave(y))
        return y.permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)


class FrequencyConv(nn.Module):
    """Convolution over ``taps`` bands of each frame, batch norm, SiLU: (B, C, F, T) -> (B, C', F, T)."""

    def __init__(self, channels: int, out: int, taps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, (taps, 1), padding=(taps // 2, 0), bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(convolve_normalise(self.conv, self.norm, x))


class TimeLayer(nn.Module):
    """An axis layer over time behind a depthwise convolution over a few frames.

    Without the convolution, attention over time knows no before and after (Chu et al. 2023, "Conditional positional
    encodings for vision transformers").
    """

    def __init__(self, config: DPTComplexConfig) -> None:
        super().__init__()
        c, taps = config.channels, config.taps
        self.frames = (taps - 1, 0) if config.causal else (taps // 2, taps // 2)
        self.norm = nn.LayerNorm(c)
        self.taps = nn.Conv2d(c, c, (taps, 1), groups=c)
        self.attention = AxisLayer(c, config.heads, config.feed_forward, config.dropout, "time", config.history)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F, C) -> (B, T, F, C)."""
        near = F.pad(self.norm(x), (0, 0, 0, 0, *self.frames)).permute(0, 3, 1, 2)
        return self.attention(x + self.taps(near).permute(0, 2, 3, 1))


def band_matrices(bands: int, rows: int = 256 // _STRIDE) -> tuple[Tensor, Tensor]:
    """(bands, rows), whose rows sum to 1, and (rows, bands), likewise: triangles evenly spaced over ``rows``."""
    place, centre = torch.linspace(0, 1, rows), torch.linspace(0, 1, bands).unsqueeze(1)
    triangles = (1 - (place - centre).abs() * (bands - 1)).clamp_min(0)
    return triangles / triangles.sum(1, keepdim=True), (triangles / triangles.sum(0)).T.contiguous()


def compress(spectrum: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Complex (B, F, T) -> |X|^power with the phase of X as real pairs (B, 2, F, T), and without it (B, F, T)."""
    pairs = torch.view_as_real(spectrum).permute(0, 3, 1, 2)
    squared = pairs.square().sum(1) + _EPS
    return pairs * (squared ** ((power - 1) / 2)).unsqueeze(1), squared ** (power / 2)


def expand(pairs: Tensor, power: float) -> Tensor:
    """The inverse of ``compress``: real pairs (B, 2, F, T) -> complex (B, F, T)."""
    squared = pairs.square().sum(1, keepdim=True) + _EPS
    return torch.view_as_complex((pairs * squared ** ((1 / power - 1) / 2)).permute(0, 2, 3, 1).contiguous())


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product of complex numbers, all as real pairs (B, 2, F, T)."""
    (real, imaginary), (other_real, other_imaginary) = a.unbind(1), b.unbind(1)
    return torch.stack(
        [real * other_real - imaginary * other_imaginary, real * other_imaginary + imaginary * other_real], 1
    )
