"""From waveform to spectrum and back, and the level that every model sees."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE_RATE = 16_000
N_FFT = 512
BINS = N_FFT // 2 + 1
SILENCE_RMS = 1e-7  # -140 dBFS: below 24-bit dither, scaled no further


class Frontend(nn.Module):
    """Centred STFT with a periodic Hann window of 512 samples, and its inverse.

    The waveform is padded with zeros to whole hops, so that the last frame is centred on or behind the last
    sample: every sample that is kept then has a squared-window sum of at least 0.5. Behind the last centre that
    sum falls to nothing, and an inverse STFT would amplify whatever the mask did there.
    """

    window: Tensor

    def __init__(self, hop: int = 256) -> None:
        super().__init__()
        if hop not in (128, 256):
            raise ValueError(f"hop must be 128 or 256 samples, not {hop}")
        self.hop = hop
        self.register_buffer("window", torch.hann_window(N_FFT, periodic=True), persistent=False)

    def stft(self, waveform: Tensor) -> Tensor:
        """(B, L), L >= 1 -> complex (B, 257, T) with T = ceil(L / hop) + 1."""
        padded = F.pad(waveform, (0, -waveform.shape[-1] % self.hop))
        window = self.window.to(waveform.dtype)
        return torch.stft(padded, N_FFT, self.hop, window=window, pad_mode="constant", return_complex=True)

    def istft(self, spectrum: Tensor, length: int) -> Tensor:
        """Complex (B, 257, T) -> (B, length), for the length that was given to ``stft``.

        Weighted overlap-add (Griffin and Lim 1984). ``torch.istft`` gives the same numbers, but looks at the sum of
        the squared windows on the way: on CUDA a wait in every call, and no CUDA graph.
        """
        window = self.window.to(spectrum.real.dtype)
        frames = torch.fft.irfft(spectrum.transpose(1, 2), N_FFT) * window  # (B, T, 512)
        weights = window.square().expand(1, *frames.shape[1:])
        kept = slice(N_FFT // 2, N_FFT // 2 + length)  # from the centre of the first frame on
        return self._overlap_add(frames)[:, kept] / self._overlap_add(weights)[:, kept]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(B, T, 512) -> (B, T * hop + 512 - hop), but for the last frame's end, where the window falls to nothing."""
        parts = N_FFT // self.hop
        hops = frames.unflatten(-1, (parts, self.hop))  # (B, T, parts, hop)
        total = hops.shape[1]
        shifted = [F.pad(hops[:, :, part], (0, 0, part, parts - 1 - part)) for part in range(parts)]
        whole: Any = sum(shifted)
        return whole[:, : total + parts - 2].flatten(1)


def normalise_level(waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each (B, L) waveform to an RMS of 1. Returns it and the gain's inverse (B, 1), which takes it back."""
    rms = waveform.square().mean(-1, keepdim=True).sqrt().clamp_min(SILENCE_RMS)
    return waveform / rms, rms


class SpectralModel(nn.Module):
    """A core that maps a spectrum to the enhanced spectrum, between an STFT and its inverse."""

    def __init__(self, core: nn.Module, hop: int) -> None:
        super().__init__()
        self.core = core
        self.frontend = Frontend(hop)

    def folded(self, dtype: torch.dtype = torch.float32) -> SpectralModel:
        """The same for inference, its weights prepared for an autocast to ``dtype``, where the core has such a form."""
        fold = getattr(self.core, "folded", None)
        core = self.core if fold is None else fold(dtype)
        return SpectralModel(core, self.frontend.hop).to(self.frontend.window.device).eval()

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, L) at 16 kHz, any L >= 1 -> (B, L), level kept."""
        return self.with_spectrum(waveform)[0]

    def with_spectrum(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """The enhanced waveform, and the spectrum (B, 257, T) it was made of, for a waveform scaled to an RMS of 1."""
        scaled, rms = normalise_level(waveform)
        spectrum = self.core(self.frontend.stft(scaled))
        return self.frontend.istft(spectrum, waveform.shape[-1]) * rms, spectrum
