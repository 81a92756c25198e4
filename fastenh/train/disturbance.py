"""The disturbance that PESQ measures, as a loss: ITU-T P.862 with the wide-band filter of P.862.2.

It differs from the standard where that makes it shorter, not where it hears: nothing is aligned in time, and formulas
take the place of tables. Bands are 0.45 Bark wide (Zwicker and Terhardt 1980, "Analytical expressions for critical-band
rate and critical bandwidth as a function of frequency"; those of the table 0.16 to 0.59), and the threshold in quiet is
that of Terhardt 1979, "Calculating virtual pitch".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastenh.models.frontend import BINS, N_FFT, SAMPLE_RATE

_HOP = N_FFT // 2  # 16 ms
_BAND = 0.45  # Bark
_SPEECH = (325.0, 3250.0)  # Hz: the level of a recording is its level there
_LEVEL, _TO_SPL, _TO_SONE = 1e7, 6.910853e-6, 0.1866055  # a mean square of 1e7 is 79 dB SPL
_AUDIBLE = 100.0  # times the threshold: what a recording's mean spectrum is made of
_SEGMENT = 20  # frames


class Disturbance(nn.Module):
    """(B, L), (B, L) -> (B,): what PESQ takes off its score of 4.5, before that is mapped to opinions.

    It does not depend on the level of either waveform.
    """

    window: Tensor
    speech: Tensor  # (BINS,), what each adds to the mean square
    bands: Tensor  # (BINS, bands)
    quiet: Tensor  # (bands,), the threshold in quiet
    exponent: Tensor  # (bands,), of loudness

    def __init__(self) -> None:
        super().__init__()
        hertz = torch.linspace(0, SAMPLE_RATE / 2, BINS, dtype=torch.float64)
        bark = 13 * torch.atan(0.76e-3 * hertz) + 3.5 * torch.atan((hertz / 7500) ** 2)
        number = ((bark[1:] - bark[1]) / _BAND).long()  # of the band; the bin at 0 Hz belongs to none
        bins = nn.functional.one_hot(number).double()
        bins = torch.cat([torch.zeros_like(bins[:1]), bins / bins.sum(0)])
        centre, kilohertz = bark @ bins, hertz @ bins / 1000
        critical_bandwidth = 25 + 75 * (1 + 1.4 * kilohertz**2) ** 0.69  # Hz
        decibels = 3.64 * kilohertz**-0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2) + 1e-3 * kilohertz**4
        window = torch.hann_window(N_FFT, dtype=torch.float64)
        speech = ((hertz >= _SPEECH[0]) & (hertz <= _SPEECH[1])) * 2 / (N_FFT * window.square().sum())
        delay = torch.exp(-2j * torch.pi * hertz / SAMPLE_RATE)
        ear = 2.740826 * (1 - delay) ** 2 / (1 - 1.9444777 * delay + 0.94597794 * delay**2)  # high-pass of P.862.2
        bands = _TO_SPL * ear.abs().square().unsqueeze(1) * bins * critical_bandwidth
        exponent = 0.23 * (6 / (centre + 2)).clamp(1, 2) ** 0.15  # Zwicker's, larger in the lowest bands
        named = {
            "window": window,
            "speech": speech,
            "bands": bands,
            "quiet": 10 ** (decibels / 10),
            "exponent": exponent,
        }
        for name, tensor in named.items():
            self.register_buffer(name, tensor.float(), persistent=False)

    def forward(self, estimate: Tensor, clean: Tensor) -> Tensor:
        heard, wanted = self._power(estimate), self._power(clean)
        wanted = wanted * self._colour(heard, wanted)
        audible = self._audible(wanted).sum(-1)
        gain = (audible + 5e3) / (self._audible(heard).sum(-1) + 5e3)
        gain = torch.cat([gain[:, :1], 0.8 * gain[:, 1:] + 0.2 * gain[:, :-1]], 1).clamp(3e-4, 5.0)
        heard = heard * gain.unsqueeze(-1)
        difference = self._difference(self._loudness(heard), self._loudness(wanted))
        added = ((heard + 50) / (wanted + 50)) ** 1.2  # what is added disturbs more than what is missing
        added = torch.where(added < 3, 0.0, added.clamp_max(12.0))
        width = _BAND * heard.shape[-1]
        symmetric = (width * (_BAND * difference).square().sum(-1) + 1e-12).sqrt()
        asymmetric = _BAND * (added * difference).abs().sum(-1)
        weight = ((audible + 1e5) / _LEVEL) ** -0.04
        return 0.1 * _over_time(symmetric * weight) + 0.0309 * _over_time(asymmetric * weight)

    def _power(self, waveform: Tensor) -> Tensor:
        """(B, L) -> (B, T, bands), at the listening level."""
        spectrum = torch.stft(waveform, N_FFT, _HOP, window=self.window, pad_mode="constant", return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)
        level = (power @ self.speech).mean(1).clamp_min(1e-12)
        return power @ self.bands * (_LEVEL / level)[:, None, None]

    def _audible(self, power: Tensor, times: float = 1.0) -> Tensor:
        return torch.where(power > times * self.quiet, power, 0.0)

    def _colour(self, heard: Tensor, wanted: Tensor) -> Tensor:
        """(B, 1, bands): by how much the mean spectrum of what is heard differs, which disturbs little."""
        loud = self._audible(wanted, _AUDIBLE).sum(-1, keepdim=True) >= _LEVEL
        means = [(self._audible(power, _AUDIBLE) * loud).mean(1, keepdim=True) for power in (heard, wanted)]
        return ((means[0] + 1000) / (means[1] + 1000)).clamp(0.01, 100.0)

    def _loudness(self, power: Tensor) -> Tensor:
        """Zwicker's law, in Sone a Bark."""
        above = (0.5 + 0.5 * power / self.quiet) ** self.exponent - 1
        return torch.where(power > self.quiet, _TO_SONE * (2 * self.quiet) ** self.exponent * above, 0.0)

    def _difference(self, heard: Tensor, wanted: Tensor) -> Tensor:
        """Less a quarter of the smaller, which masks it."""
        difference = heard - wanted
        return difference.sign() * (difference.abs() - 0.25 * torch.minimum(heard, wanted)).clamp_min(0)


def _over_time(frames: Tensor) -> Tensor:
    """(B, T) -> (B,): the power of 6 within a third of a second, squares beyond."""
    size = min(_SEGMENT, frames.shape[1])
    segments = frames.clamp_max(45.0).unfold(1, size, max(1, size // 2))
    return ((segments**6).mean(-1) + 1e-24).pow(1 / 3).mean(1).sqrt()
