"""The causal form of ``dpt_complex`` hop by hop: samples and a state go in, samples and the next state come out."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

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
_MANY = 8  # frames from which on copies of the rings cost less than two products instead of one
_NEAR = 2  # frames before the present one under the convolutions around the dual path


class LiveModelError(ProcessingError, ValueError):
    """A model that looks ahead, or that has no form hop by hop."""


@dataclass
class LiveState:
    """All that a later hop needs of those before it, for B sounds side by side. None of it grows.

    ``normed``, ``keys`` and ``values`` hold one tensor for each layer over time. Keys and values are rings: frame n is
    at place n % (history - 1), and ``frames`` counts all that have been heard.
    """

    samples: Tensor  # (B, 256): the second half of the last frame
    overlap: Tensor  # (B, 256): what the last frame leaves for the hop that comes out next
    level: Tensor  # (B, 2, 2): of ``running_level``
    compressed: Tensor  # (B, 2, 256, 3): what the first convolution saw of the last two frames
    normed: tuple[Tensor, ...]  # (B, taps - 1, bands, channels)
    keys: tuple[Tensor, ...]  # (B * bands, heads, history - 1, width), written in place
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
    A state that was given is used up, since its rings, megabytes, are written in place: ``LiveState.copy`` keeps one.
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
        self._kept: dict[str, tuple[Tensor, ...]] | None = None

    def start(self, batch: int = 1) -> LiveState:
        """The state before any sound: a recording's whole pass has zeros in front, too."""
        weights, plan = self._weights(), self.core.plan
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

    def _weights(self) -> dict[str, tuple[Tensor, ...]]:
        """By operation: the core's dictionary takes a tenth of a hop to make."""
        if self._kept is None:
            self._kept = self.core.weights()
        return self._kept

    def _apply(self, *arguments: Any, **options: Any) -> LiveModel:
        self._kept = None
        return super()._apply(*arguments, **options)

    @torch.inference_mode()
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
        weights, plan = self._weights(), self.core.plan
        unseen = _unseen(state.frames, spectra.shape[2], plan.history - 1)
        pairs, magnitude = compress(torch.view_as_complex(spectra)[:, :-1], plan.compression)
        near = torch.cat([state.compressed, torch.cat([pairs, magnitude.unsqueeze(-1)], -1)], 1)
        x = _front(near, *weights["front"])
        y, *outs = fastenh_kernels.band_encoder(x, weights["encoder"], weights["enter"])
        normed = []
        for number in range(plan.layers):
            layer = AxisLayerWeights(*weights[f"layer{number}"])
            if number % 2:
                y = fastenh_kernels.axis_layer(y, layer, plan.heads, "frequency")
                continue
            place = number // 2
            y, last = _norm_taps(y, weights[f"taps{number}"], state.normed[place])
            rings = state.keys[place], state.values[place]
            y, present = _time_layer(y, layer, plan.heads, rings, unseen)
            for ring, new in zip(rings, present, strict=True):
                _write(ring, new, state.frames)
            normed.append(last)
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
            keys=state.keys,
            values=state.values,
            frames=state.frames + spectra.shape[2],
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
    x: Tensor, w: AxisLayerWeights, heads: int, rings: tuple[Tensor, Tensor], unseen: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """``axis_layer`` over time of the frames x behind the ``rings`` of keys and values; and the keys and values of x.

    unseen: (T, places + T), 0 where a frame sees another one and minus infinity where not.
    """
    places = rings[0].shape[2]
    present = rings

    def attention(qkv: Tensor, *_: object) -> Tensor:
        nonlocal present
        q, k, v = sequences_of(qkv, heads, "time")
        present = k, v
        if x.shape[1] >= _MANY:
            k, v = torch.cat([rings[0], k], 2), torch.cat([rings[1], v], 2)
            return laid_out(F.scaled_dot_product_attention(q, k, v, attn_mask=unseen), qkv, "time")
        q = q * q.shape[3] ** -0.5
        scores = torch.cat([q @ rings[0].transpose(2, 3), q @ k.transpose(2, 3)], 3) + unseen
        past, now = scores.softmax(-1).split([places, x.shape[1]], 3)
        return laid_out(past @ rings[1] + now @ v, qkv, "time")

    return reference.axis_layer(x, w, heads, "time", attention=attention), present


def _unseen(frames: Tensor, count: int, places: int) -> Tensor:
    """(count, places + count): 0 where a frame (row) sees a place of the rings or a frame beside it, else -inf."""
    row = torch.arange(count, device=frames.device).unsqueeze(1)
    age = (frames - 1 - torch.arange(places, device=frames.device)) % max(places, 1) + 1  # seen from row 0
    past = (age + row <= places) & (age <= frames)
    between = row - row.T
    seen = torch.cat([past, (between >= 0) & (between <= places)], 1)
    return torch.zeros(seen.shape, device=frames.device).masked_fill(~seen, -math.inf)


def _write(ring: Tensor, new: Tensor, frames: Tensor) -> None:
    """The last of the ``new`` frames, the first of which is number ``frames``, into their places."""
    places, count = ring.shape[2], new.shape[2]
    kept = min(count, places)
    if kept:
        number = frames + torch.arange(count - kept, count, device=frames.device)
        ring.index_copy_(2, number % places, new[:, :, count - kept :])
