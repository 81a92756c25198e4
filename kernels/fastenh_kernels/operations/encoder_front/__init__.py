"""The features of a spectrum and the first convolution of the encoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.encoder_front import reference


def encoder_front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """``conv2d(log1p|spectrum|)``, 3x3, stride 2 along frequency, padding 1; then ReLU if asked for.

    spectrum: complex (B, F, T); weight: (C, 1, 3 frequency taps, 3 time taps); bias: (C,).
    Returns (B, T, (F + 1) // 2, C).
    """
    return OPERATION(spectrum, weight, bias, relu)


def _serves(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> str:
    channels = weight.shape[0]
    if channels & (channels - 1):
        return f"the kernel takes a power of two of channels, not {channels}"
    if torch.is_grad_enabled() and spectrum.requires_grad:
        return "the kernel has no gradient of the spectrum"
    return ""


def _examples(inputs: Inputs) -> Iterator[Example]:
    """A batch norm stands before the ReLU in training and is folded into the weights in inference."""
    channels = DPT.front_channels
    for use in ("inference", "training"):
        weight = inputs.real(channels, 1, 3, 3, scale=0.3)
        arguments = (inputs.spectrum(DPT.bins), weight, inputs.vector(channels), use == "inference")
        yield Example(use, arguments, use)


OPERATION = Operation("encoder_front", reference.encoder_front, serves=_serves, examples=_examples)
