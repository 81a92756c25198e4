"""The launches that the operations make, written down on meta tensors: what is compiled, checked and counted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import fastenh_kernels
from fastenh_kernels.launch import Launch, recording

CLIP_FRAMES = 188  # of 3 s at 16 kHz, hop 256
# Megabytes a clip that PyTorch's own operations move in a training step of dpt, 64 clips: batch norms, ReLU, sums of
# gradients, STFT; losses; what programs left in parts; AdamW. Counted by benchmarks/traffic.py; a test compares.
STEP_MEGABYTES = {"forward": 26.88, "loss": 22.84, "backward": 89.39, "sums of parts": 6.27, "optimiser": 0.68}
_empty = functools.partial(torch.empty, device="meta")
Case = tuple[Callable[..., Any], tuple[Any, ...]]


def shipped_launches(dtype: torch.dtype, capability: int) -> Iterator[tuple[str, Launch]]:
    """A name and a launch for every kernel and configuration that the operations choose."""
    spectrum = _empty(4, 257, CLIP_FRAMES, dtype=torch.complex64)
    real = _empty(4, 257, CLIP_FRAMES, dtype=dtype)
    cases = {
        f"complex_mask {a}": (fastenh_kernels.complex_mask, (real, spectrum, a)) for a in ("none", "sigmoid", "tanh")
    }
    for a in ("none", "sigmoid", "tanh"):
        backward = (spectrum, real, spectrum, a, True)
        cases[f"complex_mask {a} backward"] = (fastenh_kernels.complex_mask_backward, backward)
    if dtype == torch.float32:
        for a in ("none", "tanh"):
            cases[f"complex_mask {a}, complex mask"] = (fastenh_kernels.complex_mask, (spectrum, spectrum, a))
            backward = (spectrum, spectrum, spectrum, a, True)
            cases[f"complex_mask {a}, complex mask, backward"] = (fastenh_kernels.complex_mask_backward, backward)
    for frames, bands in ((CLIP_FRAMES, 65), (12, 33), (60, 129), (100, 257)):
        qkv, out = (_empty(4, frames, bands, width, dtype=dtype) for width in (384, 128))
        for axis in ("frequency", "time"):
            length = bands if axis == "frequency" else frames
            cases[f"axis_attention {length} of {axis}"] = (fastenh_kernels.axis_attention, (qkv, 4, axis))
            cases[f"with sums, {length} of {axis}"] = (fastenh_kernels.axis_attention_forward, (qkv, 4, axis))
            backward = (out, qkv, out, _softmax_sums(out, length, 4), 4, axis)
            cases[f"backward, {length} of {axis}"] = (fastenh_kernels.axis_attention_backward, backward)
    for frames in (60, 120, 400):
        x = _empty(4, frames, 65, 128, dtype=dtype)
        cases[f"axis_layer {frames} of time"] = (fastenh_kernels.axis_layer, (x, _layer_weights(dtype), 4, "time"))
    yield from _record(cases | forward_cases(dtype, 4), capability)
    yield from training_launches(dtype, 4, capability)
    yield from _record(_dropout_cases(dtype, 4), capability)


def forward_launches(dtype: torch.dtype, clips: int, capability: int = 90) -> Iterator[tuple[str, Launch]]:
    """A name and a launch for every step of the forward pass of ``dpt`` on clips of 3 s, in order.

    That the model makes these launches, and no others, is a test of the project.
    """
    yield from _record(forward_cases(dtype, clips), capability)


def forward_cases(dtype: torch.dtype, clips: int) -> dict[str, Case]:
    spectrum, wide, x, z, front_weight, conv_weight, matrix, vector = _around_the_layers(dtype, clips)
    cases: dict[str, Case] = {
        "encoder_front": (fastenh_kernels.encoder_front, (spectrum, front_weight, _empty(32), True)),
        "encoder_conv": (fastenh_kernels.encoder_conv, (wide, conv_weight, _empty(128), True)),
    }
    for number, axis in enumerate(("frequency", "time") * 2, 1):
        cases[f"layer {number}, {axis}"] = (fastenh_kernels.axis_layer, (x, _layer_weights(dtype), 4, axis))
    cases["decoder_taps"] = (fastenh_kernels.decoder_taps, (x, x, matrix))
    cases["mask_head"] = (fastenh_kernels.mask_head, (z, vector, vector, vector, _empty(1), spectrum))
    return cases


def training_launches(dtype: torch.dtype, clips: int, capability: int = 90) -> Iterator[tuple[str, Launch]]:
    """The same for a training step of ``dpt``, forward and backward. Batch norms, loss and optimiser are PyTorch's."""
    yield from _record(training_cases(dtype, clips), capability)


def training_cases(dtype: torch.dtype, clips: int) -> dict[str, Case]:
    spectrum, wide, x, z, front_weight, conv_weight, matrix, vector = _around_the_layers(dtype, clips)
    head = (z, vector, vector, vector, _empty(1), spectrum)
    cases: dict[str, Case] = {
        "encoder_front": (fastenh_kernels.encoder_front, (spectrum, front_weight, _empty(32), False)),
        "encoder_conv": (fastenh_kernels.encoder_conv, (wide, conv_weight, _empty(128), False)),
    }
    gradients: dict[str, Case] = {
        "encoder_conv backward": (fastenh_kernels.encoder_conv_backward, (x, wide, conv_weight)),
        "encoder_front backward": (fastenh_kernels.encoder_front_backward, (wide, spectrum)),
    }
    weights, qkv = _layer_weights(dtype), _empty(*x.shape[:3], 3 * x.shape[3], dtype=dtype)
    for number, axis in enumerate(("frequency", "time") * 2, 1):
        name = f"layer {number}, {axis}"
        cases[name] = (fastenh_kernels.axis_layer_forward, (x, weights, 4, axis))
        kept = (qkv, x, _softmax_sums(x, x.shape[2 if axis == "frequency" else 1], 4), x)
        gradient = (fastenh_kernels.axis_layer_backward, (x, x, kept, weights, 4, axis))
        gradients = {f"{name} backward": gradient} | gradients
    return cases | {
        "decoder_taps": (fastenh_kernels.decoder_taps, (x, x, matrix)),
        "upsampled_moments": (fastenh_kernels.upsampled_moments, (z, 257)),
        "mask_head": (fastenh_kernels.mask_head, head),
        "mask_head backward": (fastenh_kernels.mask_head_backward, (spectrum, *head)),
        "upsampled_moments backward": (fastenh_kernels.upsampled_moments_backward, (vector, vector, z, vector, 257)),
        "decoder_taps backward": (fastenh_kernels.decoder_taps_backward, (z, x, x, matrix)),
        **gradients,
    }


def _dropout_cases(dtype: torch.dtype, clips: int) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    dropout = 0.1, _empty(1, dtype=torch.int64)
    for frames, bands, axis in ((CLIP_FRAMES, 65, "frequency"), (CLIP_FRAMES, 65, "time"), (100, 257, "frequency")):
        x, qkv = (_empty(clips, frames, bands, width, dtype=dtype) for width in (128, 384))
        weights, sums = _layer_weights(dtype), _softmax_sums(x, bands if axis == "frequency" else frames, 4)
        name = f"dropout, {bands if axis == 'frequency' else frames} of {axis}"
        cases[name] = (fastenh_kernels.axis_layer_forward, (x, weights, 4, axis, *dropout))
        gradient = (x, x, (qkv, x, sums, x), weights, 4, axis, *dropout)
        cases[f"{name}, backward"] = (fastenh_kernels.axis_layer_backward, gradient)
    return cases


def _softmax_sums(x: torch.Tensor, length: int, heads: int) -> torch.Tensor:
    return _empty(x.numel() // x.shape[3] // length * heads, length)


def _around_the_layers(dtype: torch.dtype, clips: int) -> tuple[torch.Tensor, ...]:
    """Spectrum, both encoder outputs, z; weights of the encoder's two convolutions and the decoder's; a vector."""
    bins, bands, channels, front, head = 257, 65, 128, 32, 64
    return (
        _empty(clips, CLIP_FRAMES, bins, dtype=torch.complex64).transpose(1, 2),  # as torch.stft lays it
        _empty(clips, CLIP_FRAMES, 129, front, dtype=dtype),
        _empty(clips, CLIP_FRAMES, bands, channels, dtype=dtype),
        _empty(clips, CLIP_FRAMES, bands, 3, head, dtype=dtype),
        _empty(front, 1, 3, 3, dtype=dtype),
        _empty(3, 3 * front, channels, dtype=dtype),
        _empty(3, channels, 3 * head, dtype=dtype),
        _empty(head),
    )


def _layer_weights(dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(128,), (128,), (384, 128), (384,), (128, 128), (128,)]
    shapes += [(128,), (128,), (512, 128), (512,), (128, 512), (128,)]
    return [_empty(shape, dtype=dtype if len(shape) == 2 else torch.float32) for shape in shapes]


def _record(cases: dict[str, Case], capability: int) -> Iterator[tuple[str, Launch]]:
    for name, (function, arguments) in cases.items():
        with recording(capability) as launches:
            function(*arguments)
        for launch in launches:
            yield f"{name}: {launch.kernel.fn.__name__.removesuffix('_kernel')}" if len(launches) > 1 else name, launch
