"""What happens to sound on its way: each takes the numbers it needs from ``Draws`` and a batch (B, ..., L)."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from fastenh.data.draws import Draws
from fastenh.data.filters import apply_gains, from_db, hat_functions
from fastenh.models.frontend import Frontend

FASTEST = 1.14
_SLOWEST = 0.88
_HALF_WIDTH = 12  # samples, of the interpolation
_CODEC_BAND = 16  # bins


def respeed(draws: Draws, x: Tensor) -> Tensor:
    """Change pitch and tempo together, by 0.88-1.14; what runs out is followed by zeros. (B, L) -> (B, L).

    Band-limited interpolation with a Hann-windowed sinc (Smith and Gossett 1984, "A flexible sampling-rate conversion
    method").
    """
    factor = draws.uniform(_SLOWEST, FASTEST, 1)
    position = factor * torch.arange(x.shape[-1], device=x.device)
    first = position.floor().long()
    share = (position - first).float()
    cutoff = (1 / factor).clamp_max(1.0).float()
    out = torch.zeros_like(x)
    for tap in range(1 - _HALF_WIDTH, _HALF_WIDTH + 1):
        distance = tap - share
        weight = cutoff * torch.sinc(cutoff * distance) * torch.cos(distance * (math.pi / 2 / _HALF_WIDTH)).square()
        source = first + tap
        inside = (source >= 0) & (source < x.shape[-1])
        out += weight * inside * x.gather(1, source.clamp(0, x.shape[-1] - 1))
    return out


def equalise(draws: Draws, x: Tensor) -> Tensor:
    """Equalise by a smooth random curve of +-8 dB over seven octaves."""
    bins = torch.linspace(1, 128, x.shape[-1] // 2 + 1, device=x.device)
    curve = hat_functions(torch.log2(bins) / 7, torch.linspace(0, 1, 7, device=x.device))
    return apply_gains(x, from_db(draws.uniform(-8, 8, 7).float() @ curve))


def low_pass(draws: Draws, x: Tensor, sample_rate: int) -> Tensor:
    """Low-pass (B, 2, L), both sides alike: an edge between 3 and 7 kHz, as of telephones and narrow codecs."""
    frequency = torch.fft.rfftfreq(x.shape[-1], 1 / sample_rate, device=x.device)
    edge = draws.uniform(3000, 7000, 1, 1).float()
    return apply_gains(x, torch.sigmoid((edge - frequency) / 60))


def clip(draws: Draws, x: Tensor) -> Tensor:
    """Clip at 25 to 90 % of the peak."""
    ceiling = x.abs().amax(-1, keepdim=True) * draws.uniform(0.25, 0.9, 1).float()
    return x.clamp(-ceiling, ceiling)


def codec(draws: Draws, x: Tensor) -> Tensor:
    """The loss of a transform codec at a low rate: coefficients rounded to steps in proportion to the level of their
    band, coarser towards high frequencies, so that weak ones vanish from frame to frame."""
    frontend = _frontend(x.device)
    spectrum = frontend.stft(x)
    bins = spectrum.shape[1]
    bands = torch.arange(bins, device=x.device) // _CODEC_BAND
    spread = (bands[:, None] == bands).float() / (bands[:, None] == bands).sum(1)  # the mean of each bin's band
    level = (spread @ spectrum.abs().square()).sqrt()
    coarser = torch.linspace(0, 6, bins, device=x.device)
    step = (level * from_db(draws.uniform(-12, 3, 1).float() + coarser)[..., None]).clamp_min(1e-9)
    rounded = torch.view_as_complex(torch.round(torch.view_as_real(spectrum / step))) * step
    return frontend.istft(rounded, x.shape[-1])


@cache
def _frontend(device: torch.device) -> Frontend:
    return Frontend().to(device)
