"""The launches of what is shipped, written down on meta tensors: what is compiled, checked and counted."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from fastenh_kernels.examples import Inputs, leaves
from fastenh_kernels.operation import OPERATIONS, Operation, tensors_of
from fastenh_kernels.shared.launch import Launch, recording

CLIP_FRAMES = 188  # of 3 s at 16 kHz, hop 256


class Work(NamedTuple):
    """A batch as it goes through the model."""

    clips: int
    frames: int
    seconds: float  # of audio that a clip delivers
    dropout: float = 0.0


CLIPS = Work(64, CLIP_FRAMES, 3.0)  # as benchmarks/gpu.py measures them
WINDOWS = Work(16, 256, 3.58)  # as they are enhanced on a GPU: docs/spans.md
META = torch.device("meta")
Case = tuple[str, str]  # the name of an operation and the label of one of its examples
_LAYERS = [("axis_layer", f"dpt, {axis}, folded") for axis in ("frequency", "time")] * 2
_NARROW = [("time_layer", ""), ("axis_layer", "dpt_complex, frequency, folded")] * 3
_LAYERS_IN_TRAINING = [("axis_layer", f"dpt, {axis}") for axis in ("frequency", "time")] * 2
_NARROW_IN_TRAINING = [("norm_taps", ""), *[("axis_layer", f"dpt_complex, {a}") for a in ("time", "frequency")]] * 3
_MIXES = [("band_convolution", label) for label in ("first mix", "three bands", "mix", "three bands", "mix")]
FORWARD: dict[str, list[Case]] = {
    "dpt": [("encoder_front", "inference"), ("encoder_conv", "inference"), *_LAYERS,
            ("decoder_taps", ""), ("mask_head", "")],
    "dpt_complex": [("compressed_front", ""), ("band_encoder", ""), *_NARROW, ("band_decoder", ""),
                    ("compressed_mask", "")],
}  # fmt: skip
TRAINING: dict[str, list[Case]] = {
    "dpt": [("encoder_front", "training"), ("encoder_conv", "training"), *_LAYERS_IN_TRAINING,
            ("decoder_taps", ""), ("upsampled_moments", ""), ("mask_head", ""), ("spectral_loss", "")],
    "dpt_complex": [("front_convolution", ""), *[("band_convolution", "three bands, forked")] * 2,
                    ("band_map", "enter"), *_NARROW_IN_TRAINING, ("band_map", "leave"), *_MIXES, ("affine_silu", ""),
                    ("compressed_mask", ""), ("spectral_loss", "")],
}  # fmt: skip


def forward_launches(
    dtype: torch.dtype, work: Work, capability: int = 90, model: str = "dpt"
) -> Iterator[tuple[str, Launch]]:
    """A name and a launch for every step of the forward pass of a model, in order.

    That the model makes these launches, and no others, is a test of the project.
    """
    for name, operation, arguments in _cases(FORWARD[model], dtype, work):
        with recording(capability) as launches, torch.no_grad():
            operation(*arguments)
        yield from _named(name, launches)


def training_launches(
    dtype: torch.dtype, work: Work, capability: int = 90, model: str = "dpt", spectral: bool = True
) -> Iterator[tuple[str, Launch]]:
    """The same for a training step, forward and backward. Batch norms, optimiser and what else there is of the loss are
    PyTorch's. spectral: the loss has terms of compressed spectra."""
    back: list[tuple[str, list[Launch]]] = []
    cases = [case for case in TRAINING[model] if spectral or case[0] != "spectral_loss"]
    for name, operation, arguments in _cases(cases, dtype, work):
        with recording(capability) as launches:
            gradients = differentiate(operation, arguments)
            forward = list(launches)
            launches.clear()
            gradients()
        yield from _named(name, forward)
        back.append((f"{name} backward", list(launches)))
    for name, launches in reversed(back):
        yield from _named(name, launches)


def shipped_launches(dtype: torch.dtype, capability: int) -> Iterator[tuple[str, Launch]]:
    """A name and a launch for every kernel and configuration that the operations choose."""
    for frames in (CLIP_FRAMES, 12, 60, 100, 120, 256, 400):
        for dropout in (0.0, 0.1):
            for operation, label, arguments in _every_example(dtype, frames, dropout):
                with recording(capability) as launches:
                    with torch.no_grad():
                        operation(*arguments)
                    if operation.differentiable:
                        differentiate(operation, arguments)()
                yield from _named(f"{operation.name} {label}, {frames} frames".replace(" ,", ","), launches)


def differentiate(operation: Operation, arguments: tuple[Any, ...]) -> functools.partial:
    """Runs the operation; the gradients of all its real tensors are then one call away."""
    arguments = leaves(arguments)
    result = operation(*arguments)
    results = result if isinstance(result, tuple) else (result,)
    wanted = [tensor for tensor in tensors_of(arguments) if tensor.requires_grad]
    return functools.partial(torch.autograd.grad, results, wanted, [torch.empty_like(r) for r in results])


def _cases(wanted: Iterable[Case], dtype: torch.dtype, work: Work) -> Iterator[tuple[str, Operation, tuple[Any, ...]]]:
    """Layers go by their number in the model."""
    inputs = Inputs(META, dtype, work.clips, work.frames)
    layers = 0
    for name, label in wanted:
        operation = OPERATIONS[name]
        (arguments,) = (e.arguments for e in operation.examples(inputs) if e.label == label)
        if name == "axis_layer":
            arguments = operation.with_dropout(arguments, work.dropout)
        if name in ("axis_layer", "time_layer"):
            layers += 1
            name = f"layer {layers}, {'time' if name == 'time_layer' else arguments[3]}"
        yield name, operation, arguments


def _every_example(dtype: torch.dtype, frames: int, dropout: float) -> Iterator[tuple[Operation, str, tuple[Any, ...]]]:
    inputs = Inputs(META, dtype, 4, frames)
    for operation in OPERATIONS.values():
        # others have one configuration for all lengths
        if operation.takes_dropout or (frames == CLIP_FRAMES and not dropout):
            for example in operation.examples(inputs):
                if not operation.serves(*example.arguments):
                    given = operation.with_dropout(example.arguments, dropout) if dropout else example.arguments
                    yield operation, f"{example.label}, dropout" if dropout else example.label, given


def _named(name: str, launches: list[Launch]) -> Iterator[tuple[str, Launch]]:
    for launch in launches:
        yield f"{name}: {launch.kernel.fn.__name__.removesuffix('_kernel')}" if len(launches) > 1 else name, launch
