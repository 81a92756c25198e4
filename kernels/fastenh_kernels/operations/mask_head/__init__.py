"""From the decoder's features before upsampling to the enhanced spectrum."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.mask_head import cpu, reference
from fastenh_kernels.shared.upsampled import unserved_channels


def mask_head(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> Tensor:
    """``sigmoid(weight . relu(scale * up(z) + shift) + bias) * spectrum``, up(z) the upsampled convolution.

    z: (B, T, F, 3, C') from ``decoder_taps``; scale, shift: (C',), batch norm and the convolution's bias folded;
    weight: (1, C', 1, 1) or (C',); bias: (1,); spectrum: complex (B, bins, T). Returns complex (B, bins, T).
    Upsampling is linear, align_corners=False, from F to ``bins``; rows outside are zero.
    """
    return OPERATION(z, scale, shift, weight, bias, spectrum)


def _serves(z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor) -> str:
    return unserved_channels(z)


def _examples(inputs: Inputs) -> Iterator[Example]:
    channels = DPT.head_channels
    z = inputs.real(inputs.clips, inputs.frames, DPT.bands, 3, channels)
    scale, shift, bias = (inputs.vector(size) for size in (channels, channels, 1))
    weight = inputs.real(channels, scale=0.2, dtype=torch.float32)
    yield Example("", (z, scale, shift, weight, bias, inputs.spectrum(DPT.bins)))


OPERATION = Operation("mask_head", reference.mask_head, cpu=cpu.mask_head, serves=_serves, examples=_examples)
