"""What a model does with a recording: the gain of each bin, and where its attention lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fastenh_kernels
from fastenh.audio.files import read_mono
from fastenh.errors import UsageError
from fastenh.models import checkpoint
from fastenh.models.frontend import SAMPLE_RATE, SpectralModel
from fastenh.plots.figures import GAINS, SEQUENTIAL, PlotError, figure
from fastenh_kernels.operations.axis_attention import Axis, reference

_LONGEST = 30.0  # seconds: attention takes memory by the square of it
_FLOOR = -40.0  # dB


class ChoiceError(UsageError, ValueError):
    """A block, head, band or frame that the model does not have."""


def draw_mask(recording: Path, source: str, picture: Path) -> None:
    """|Y| / |X| of each bin and frame in dB, X what the model hears and Y what it makes of it."""
    model, spectrum = _heard(recording, source)
    with torch.inference_mode():
        gain = model.core(spectrum).abs() / spectrum.abs().clamp_min(1e-9)
    level = 20 * torch.log10(gain[0].clamp_min(1e-6)).numpy()
    seconds = level.shape[1] * model.frontend.hop / SAMPLE_RATE
    with figure(picture, 9, 3) as drawn:
        axis = drawn.subplots()
        image = axis.imshow(
            level, origin="lower", aspect="auto", extent=(0, seconds, 0, SAMPLE_RATE / 2000), cmap=GAINS,
            vmin=_FLOOR, vmax=0,
        )  # fmt: skip
        axis.set(title=f"gain of {Path(source).stem}: {recording.name}", xlabel="time (s)", ylabel="frequency (kHz)")
        drawn.colorbar(image, ax=axis, label="gain (dB)", extend="both", pad=0.01)


def draw_attention(
    recording: Path, source: str, picture: Path, axis: str, block: int, head: int | None, at: int | None
) -> None:
    """Weights of one layer, a panel a head: rows are what attends, columns what is attended to.

    axis: "time" or "frequency", along which the layer attends. block: counted from 1. head: one alone, from 1. at: the
    band whose frames attend to each other, or the frame whose bands do; the one in the middle unless given.
    """
    model, spectrum = _heard(recording, source)
    weights = attention_weights(model, spectrum, axis, block)  # (places, heads, length, length)
    places, heads, length, _ = weights.shape
    at = places // 2 if at is None else at
    place = "band" if axis == "time" else "frame"
    if not 0 <= at < places:
        raise ChoiceError(f"--at {at}: there are {place}s 0 to {places - 1}")
    if head is not None and not 1 <= head <= heads:
        raise ChoiceError(f"--head {head}: there are heads 1 to {heads}")
    shown = range(heads) if head is None else [head - 1]
    unit, end = ("time (s)", length * model.frontend.hop / SAMPLE_RATE) if axis == "time" else ("band", length)
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    with figure(picture, max(0.8 + 2.9 * columns, 4.6), 1.0 + 2.7 * rows) as drawn:
        panels = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel in panels.flat[len(shown) :]:
            panel.set_visible(False)
        for panel, number in zip(panels.flat, shown, strict=False):
            level = np.log10(np.maximum(weights[at, number].numpy(), 1e-12))
            image = panel.imshow(
                level, cmap=SEQUENTIAL, extent=(0, end, end, 0), vmin=-np.log10(length) - 1, vmax=0, aspect="equal"
            )
            panel.set(title=f"head {number + 1}")
        for panel in panels[-1]:
            panel.set_xlabel(f"attended to: {unit}")
        for panel in panels[:, 0]:
            panel.set_ylabel(f"attends: {unit}")
        drawn.colorbar(image, ax=list(panels.flat), label="log10 of the weight (rows sum to 1)", extend="min")
        where = f"{Path(source).stem}, block {block} along {axis}, {place} {at} of {places}"
        drawn.suptitle(f"attention of {where}\n{recording.name}", fontsize=9)


def attention_weights(model: SpectralModel, spectrum: Tensor, axis: str, block: int) -> Tensor:
    """(sequences of the first clip, heads, length, length), from what the operation ``axis_layer`` is given."""
    with torch.inference_mode(), _layers() as calls:
        model.core(spectrum)
        layers = [call for call in calls if call[3] == axis]
        if not layers:
            raise ChoiceError(f"--axis {axis}: this model has no attention along it")
        if not 1 <= block <= len(layers):
            raise ChoiceError(f"--block {block}: there are blocks 1 to {len(layers)} along {axis}")
        x, w, heads, _, history = layers[block - 1]
        normed = F.layer_norm(x[:1], x.shape[-1:], w.norm1_weight, w.norm1_bias)
        return reference.attention_weights(F.linear(normed, w.qkv_weight, w.qkv_bias), heads, axis, history)


@contextmanager
def _layers() -> Iterator[list[tuple[Any, ...]]]:
    """What each layer is given: x, weights, heads, axis, history."""
    calls: list[tuple[Any, ...]] = []
    operations = fastenh_kernels.axis_layer, fastenh_kernels.time_layer

    def axis_layer(
        x: Tensor, weights: Any, heads: int, axis: Axis, dropout: float = 0.0, history: int = 0, folded: bool = False
    ) -> Tensor:
        calls.append((x, weights, heads, axis, history))
        return operations[0](x, weights, heads, axis, dropout, history, folded)

    def time_layer(
        x: Tensor, taps: Any, weights: Any, heads: int, ahead: int, history: int = 0, folded: bool = False
    ) -> Tensor:
        norm_weight, norm_bias, weight, bias = taps
        near = fastenh_kernels.norm_taps(x, norm_weight, norm_bias, weight, bias, ahead)
        return axis_layer(near, weights, heads, "time", 0.0, history, folded)

    fastenh_kernels.axis_layer, fastenh_kernels.time_layer = axis_layer, time_layer
    try:
        yield calls
    finally:
        fastenh_kernels.axis_layer, fastenh_kernels.time_layer = operations


def _heard(recording: Path, source: str) -> tuple[SpectralModel, Tensor]:
    """The model, and the spectrum (1, 257, T) that it sees of the recording."""
    model, _ = checkpoint.load(source)
    samples = read_mono(recording, SAMPLE_RATE)
    if not samples.size:
        raise PlotError(f"{recording}: holds no samples, there is nothing to draw")
    if samples.size > _LONGEST * SAMPLE_RATE:
        raise PlotError(f"{recording}: longer than {_LONGEST:.0f} s; cut out the part that is to be drawn")
    return model, model.scaled(torch.from_numpy(samples)[None])[0]
