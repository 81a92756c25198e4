"""The causal form of ``dpt_complex`` hop by hop: samples and a state go in, samples and the next state come out."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastenh_kernels
from fastenh.errors import ProcessingError
from fastenh.models.dpt_complex import DPTComplex
from fastenh.models.frontend import BINS, N_FFT, SAMPLE_RATE, SpectralModel
from fastenh.models.level import before_sound, running_level
from fastenh_kernels.operations.axis_attention.reference import laid_out, sequences_of
from fastenh_kernels.operations.axis_layer import reference
from fastenh_kernels.operations.axis_layer.weights import AxisLayerWeights
from fastenh_kernels.shared.compression import compress, expand, multiply

HOP = N_FFT // 2
_NEAR = 2  # frames before the present one under the convolutions around the dual path


class LiveModelError(ProcessingError, ValueError):
    """A model that looks ahead, or that has no form hop by hop."""


@dataclass
class LiveState:
    """All that a later hop needs of those before it, for B sounds side by side. None of it grows.

    ``normed``, ``keys`` and ``values`` hold one tensor for each layer over time. Of the attention's history that many
    last frames are valid as ``frames`` says, which counts no further than the history.
    """

    samples: Tensor  # (B, 256): the second half of the last frame
    overlap: Tensor  # (B, 256): what the last frame leaves for the hop that comes out next
    level: Tensor  # (B, 2, 2): of ``running_level``
    compressed: Tensor  # (B, 2, 256, 3): what the first convolution saw of the last two frames
    normed: tuple[Tensor, ...]  # (B, taps - 1, bands, channels)
    keys: tuple[Tensor, ...]  # (B * bands, heads, history - 1, width)
    values: tuple[Tensor, ...]  # likewise
    frames: Tensor  # (1,), int64
    decoded: Tensor  # (B, 2, 64, conv_channels): of the last two frames, in front of the mask

    def copy(self) -> LiveState:
        """A state that may go on from here while this one stays."""
        return deepcopy(self)


class LiveModel(nn.Module):
    """A causal ``dpt_complex`` for sound that is still being made: hops of 256 samples, as many at a time as wanted.

    What comes out is 256 samples behind what goes in, which with the hop itself is 32 ms, and is what the model gives
    for the whole recording, in whatever portions the hops come: hop k of it comes out when hop k + 1 has gone in.
    Raises ``LiveModelError`` for a model that looks ahead.
    """

    inverse_window: Tensor

    def __init__(self, model: SpectralModel) -> None:
        super().__init__()
        core = model.core
        if not isinstance(core, DPTComplex) or core.plan.ahead or core.plan.taps_ahead or not core.plan.history:
            raise LiveModelError("this model looks ahead and cannot run live; dpt_complex-live can")
        if model.frontend.hop != HOP:
            raise LiveModelError(f"a live model has a hop of {HOP} samples, not {model.frontend.hop}")
        self.core = core.eval().folded()
        self.frontend = model.frontend
        window = self.frontend.window
        squared = window[:HOP].square() + window[HOP:].square()
        self.register_buffer("inverse_window", window / squared.repeat(2))

    def start(self, batch: int = 1) -> LiveState:
        """The state before any sound: a recording's whole pass has zeros in front, too."""
        weights, plan = self.core.weights(), self.core.plan
        zeros = self.inverse_window.new_zeros
        over_time = range(0, plan.layers, 2)
        bands, channels = weights["enter"][3].shape
        taps = weights["taps0"][2].shape[1]
        ring = batch * bands, plan.heads, plan.history - 1, channels // plan.heads
        return LiveState(
            samples=zeros(batch, HOP),
            overlap=zeros(batch, HOP),
            level=before_sound(batch, self.inverse_window.device),
            compressed=zeros(batch, _NEAR, BINS - 1, 3),
            normed=tuple(zeros(batch, taps - 1, bands, channels) for _ in over_time),
            keys=tuple(zeros(ring) for _ in over_time),
            values=tuple(zeros(ring) for _ in over_time),
            frames=zeros(1, dtype=torch.int64),
            decoded=zeros(batch, _NEAR, weights["leave"][2].shape[0], weights["head"][0].shape[0]),
        )

    def forward(self, samples: Tensor, state: LiveState) -> tuple[Tensor, LiveState]:
        """(B, hops * 256) at 16 kHz and the state they meet -> as many samples, a hop behind, and the next state."""
        heard = torch.cat([state.samples, samples], 1)
        spectrum = torch.fft.rfft(heard.unfold(1, N_FFT, HOP) * self.frontend.window).transpose(1, 2)
        level, level_state = running_level(self.frontend.power(spectrum), state.level, SAMPLE_RATE / HOP)
        level = level.unsqueeze(1)
        masked, following = self.advance(torch.view_as_real(spectrum / level), state)
        enhanced = torch.view_as_complex(masked) * level
        first, second = (torch.fft.irfft(enhanced.transpose(1, 2), N_FFT) * self.inverse_window).chunk(2, 2)
        made = first + torch.cat([state.overlap.unsqueeze(1), second[:, :-1]], 1)
        following.samples, following.overlap, following.level = heard[:, -HOP:], second[:, -1], level_state
        return made.flatten(1), following

    def advance(self, spectra: Tensor, state: LiveState) -> tuple[Tensor, LiveState]:
        """The core alone: real pairs (B, 257, T, 2), scaled to the running level -> masked ones, and the next state.

        What of the state belongs to the waveform stays as it is.
        """
        weights, plan = self.core.weights(), self.core.plan
        pairs, magnitude = compress(torch.view_as_complex(spectra)[:, :-1], plan.compression)
        near = torch.cat([state.compressed, torch.cat([pairs, magnitude.unsqueeze(-1)], -1)], 1)
        x = _front(near, *weights["front"])
        y, *outs = fastenh_kernels.band_encoder(x, weights["encoder"], weights["enter"])
        normed, keys, values = [], [], []
        for number in range(plan.layers):
            layer = AxisLayerWeights(*weights[f"layer{number}"])
            if number % 2:
                y = fastenh_kernels.axis_layer(y, layer, plan.heads, "frequency")
                continue
            place = number // 2
            y, last = _norm_taps(y, weights[f"taps{number}"], state.normed[place])
            y, ring = _time_layer(y, layer, plan.heads, (state.keys[place], state.values[place]), state.frames)
            normed.append(last)
            keys.append(ring[0])
            values.append(ring[1])
        skips = (*reversed(outs), x)
        x = fastenh_kernels.band_decoder(y, skips, weights["leave"], weights["mixes"], weights["decoder"])
        decoded = torch.cat([state.decoded, x], 1)
        masked = F.pad(multiply(_mask(decoded, *weights["head"]), pairs), (0, 0, 0, 1))
        following = LiveState(
            samples=state.samples,
            overlap=state.overlap,
            level=state.level,
            compressed=near[:, -_NEAR:],
            normed=tuple(normed),
            keys=tuple(keys),
            values=tuple(values),
            frames=(state.frames + spectra.shape[2]).clamp_max(plan.history),
            decoded=decoded[:, -_NEAR:],
        )
        return torch.view_as_real(expand(masked, plan.compression)), following


def _front(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``compressed_front`` of (B, T + 2, 256, 3), already compressed: (B, T, 64, C)."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.transpose(2, 3), bias, stride=(1, 4), padding=(0, 2))
    return F.silu(y).permute(0, 2, 3, 1)


def _mask(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The mask of ``compressed_mask`` from (B, T + 2, 64, C), for the last T frames: real pairs (B, T, 256, 2)."""
    mask = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight.transpose(2, 3), bias, (1, 4), (_NEAR, 2))
    return mask.permute(0, 2, 3, 1)


def _norm_taps(x: Tensor, weights: tuple[Tensor, ...], before: Tensor) -> tuple[Tensor, Tensor]:
    """``norm_taps`` of the frames x behind the normalised frames ``before``, and the last of these frames."""
    norm_weight, norm_bias, taps, bias = weights
    near = torch.cat([before, F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias)], 1)
    kernel = taps.unsqueeze(1).unsqueeze(-1)
    moved = F.conv2d(near.permute(0, 3, 1, 2), kernel, bias, groups=len(taps)).permute(0, 2, 3, 1)
    return x + moved, near[:, near.shape[1] - before.shape[1] :]


def _time_layer(
    x: Tensor, w: AxisLayerWeights, heads: int, before: tuple[Tensor, Tensor], frames: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """``axis_layer`` over time of the frames x behind the keys and values ``before``, and the last of them.

    Of what is before only the last ``frames`` have been heard.
    """
    past, ring = before[0].shape[2], before

    def attention(qkv: Tensor, *_: object) -> Tensor:
        nonlocal ring
        queries, k, v = sequences_of(qkv, heads, "time")
        k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        attended = F.scaled_dot_product_attention(queries, k, v, attn_mask=_seen(x.shape[1], past, frames))
        ring = k[:, :, k.shape[2] - past :], v[:, :, k.shape[2] - past :]
        return laid_out(attended, qkv, "time")

    return reference.axis_layer(x, w, heads, "time", attention=attention), ring


def _seen(count: int, past: int, frames: Tensor) -> Tensor:
    """(count, past + count): true where a frame (row) sees one no more than ``past`` frames before it (column)."""
    column = torch.arange(past + count, device=frames.device)
    age = torch.arange(past, past + count, device=frames.device).unsqueeze(1) - column
    return (age >= 0) & (age <= past) & (column >= past - frames)
