"""From waveform to spectrum and back, and the level that every model sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastenh.models.level import before_sound, level_of, running_level
from fastenh.models.transform import analyse, overlap_add, synthesise

SAMPLE_RATE = 16_000
N_FFT = 512
BINS = N_FFT // 2 + 1


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

    def stft(self, waveform: Tensor, level: Tensor | None = None) -> Tensor:
        """(B, L), L >= 1 -> complex (B, 257, T) with T = ceil(L / hop) + 1; divided by ``level`` (B, 1)."""
        window = self.window.to(waveform.dtype)
        if level is not None and level.requires_grad:  # windows are constants
            return self.stft(waveform / level)
        scaled = window if level is None else window / level.unsqueeze(-1)
        return analyse(waveform, scaled, self.hop).transpose(1, 2)

    def power(self, spectrum: Tensor) -> Tensor:
        """The mean square under the window of each frame, from its spectrum (Parseval): (B, 257, T) -> (B, T)."""
        squared = torch.view_as_real(spectrum).square().sum(-1)
        total = 2 * squared.sum(1) - squared[:, 0] - squared[:, -1]
        return total / (N_FFT * self.window.to(total.dtype).square().sum())

    def istft(self, spectrum: Tensor, length: int, level: Tensor | None = None) -> Tensor:
        """Complex (B, 257, T) -> (B, length), for the length that was given to ``stft``; times ``level`` (B, 1).

        Weighted overlap-add (Griffin and Lim 1984). ``torch.istft`` gives the same numbers, but looks at the sum of
        the squared windows on the way: on CUDA a wait in every call, and no CUDA graph.
        """
        window = self.window.to(spectrum.real.dtype)
        if level is not None and level.requires_grad:  # windows are constants
            return self.istft(spectrum, length) * level
        frames = spectrum.transpose(1, 2)
        scaled = window if level is None else window * level.unsqueeze(-1)
        if 2 * self.hop == N_FFT:  # every sample lies under two frames: the window of each is divided by both
            weights = window.square().view(2, self.hop).sum(0).repeat(2)
            return synthesise(frames, scaled / weights, self.hop, length)
        weights = overlap_add(window.expand(1, frames.shape[1], N_FFT), window, self.hop, length)
        return synthesise(frames, scaled, self.hop, length) / weights


class SpectralModel(nn.Module):
    """A core that maps a spectrum to the enhanced spectrum, between an STFT and its inverse.

    The core sees an RMS of 1: of each waveform as a whole, or with ``causal`` of what has been heard up to each frame.
    """

    def __init__(self, core: nn.Module, hop: int, causal: bool = False) -> None:
        super().__init__()
        self.core = core
        self.frontend = Frontend(hop)
        self.causal = causal

    def folded(self, dtype: torch.dtype = torch.float32) -> SpectralModel:
        """The same for inference, its weights prepared for an autocast to ``dtype``, where the core has such a form."""
        fold = getattr(self.core, "folded", None)
        core = self.core if fold is None else fold(dtype)
        return SpectralModel(core, self.frontend.hop, self.causal).to(self.frontend.window.device).eval()

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, L) at 16 kHz, any L >= 1 -> (B, L), level kept."""
        return self.with_spectrum(waveform)[0]

    def with_spectrum(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """The enhanced waveform, and the spectrum (B, 257, T) it was made of, for a waveform scaled to an RMS of 1."""
        spectrum, level = self.scaled(waveform)
        enhanced, length = self.core(spectrum), waveform.shape[-1]
        if not self.causal:
            return self.frontend.istft(enhanced, length, level), enhanced
        enhanced = enhanced * level.unsqueeze(1)
        return self.frontend.istft(enhanced, length), enhanced / level_of(waveform).unsqueeze(1)

    def scaled(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) -> the spectrum that the core sees (B, 257, T), and the level: (B, 1), or with ``causal`` (B, T)."""
        if not self.causal:
            level = level_of(waveform)
            return self.frontend.stft(waveform, level), level
        spectrum = self.frontend.stft(waveform)
        state = before_sound(len(waveform), waveform.device, waveform.dtype)
        level, _ = running_level(self.frontend.power(spectrum), state, SAMPLE_RATE / self.frontend.hop)
        return spectrum / level.unsqueeze(1), level
