"""The dual-path transformer: attention over the bands of a frame, then over the frames of a band."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastenh_kernels
from fastenh.models.batch_norm import moments_of_all, processes, update_running
from fastenh.models.blocks import AxisLayer, bias_of, fold_batch_norm, initialise, running_moments
from fastenh_kernels.operations.axis_attention import Axis


@dataclass(frozen=True)
class DPTConfig:
    channels: int = 128
    front_channels: int = 32
    head_channels: int = 64
    heads: int = 4
    feed_forward: int = 512
    blocks: int = 2
    dropout: float = 0.1
    hop: int = 256


class DPT(nn.Module):
    """Core of the dual-path transformer (the origin's fourth model, 904,705 parameters)."""

    layers: Iterable[Any]  # of AxisLayer; a ModuleList promises no more than modules

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        c, front, head = config.channels, config.front_channels, config.head_channels
        self.front = nn.Conv2d(1, front, 3, stride=(2, 1), padding=1)
        self.front_norm = nn.BatchNorm2d(front)
        self.encoder = nn.Conv2d(front, c, 3, stride=(2, 1), padding=1)
        self.encoder_norm = nn.BatchNorm2d(c)
        layer = (c, config.heads, config.feed_forward, config.dropout)
        axes: tuple[Axis, ...] = ("frequency", "time") * config.blocks
        self.layers = nn.ModuleList(AxisLayer(*layer, axis) for axis in axes)
        self.decoder = nn.Conv2d(c, head, 3, padding=1)
        self.decoder_norm = nn.BatchNorm2d(head)
        self.head = nn.Conv2d(head, 1, 1)
        self.apply(initialise)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        x = skip = self._encode(spectrum)
        for layer in self.layers:
            x = layer(x)
        z = fastenh_kernels.decoder_taps(x, skip, decoder_matrix(self.decoder.weight))
        moments = self._batch_moments(z, spectrum.shape[1]) if self.training else self._running_moments()
        scale, shift = self._decoder_affine(*moments)
        return fastenh_kernels.mask_head(z, scale, shift, self.head.weight, bias_of(self.head), spectrum)

    def folded(self, dtype: torch.dtype = torch.float32) -> FoldedDPT:
        """The same in evaluation, its weights prepared once."""
        return FoldedDPT(self, dtype)

    def _encode(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> (B, T, 65, C)."""
        if not self.training:
            x = fastenh_kernels.encoder_front(spectrum, *fold_batch_norm(self.front, self.front_norm), relu=True)
            weight, bias = fold_batch_norm(self.encoder, self.encoder_norm)
            return fastenh_kernels.encoder_conv(x, encoder_matrix(weight), bias, relu=True).contiguous()
        x = fastenh_kernels.encoder_front(spectrum, self.front.weight, bias_of(self.front))
        x = self.front_norm(x.permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
        x = fastenh_kernels.encoder_conv(x, encoder_matrix(self.encoder.weight), bias_of(self.encoder))
        return self.encoder_norm(x.permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1).contiguous()

    def _batch_moments(self, z: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        """Of the decoder's convolution without its bias; the running ones follow."""
        mean, var = moments_of_all(*fastenh_kernels.upsampled_moments(z, bins))
        with torch.no_grad():
            count = processes() * z.shape[0] * z.shape[1] * bins
            update_running(self.decoder_norm, mean + bias_of(self.decoder), var, count)
        return mean, var

    def _running_moments(self) -> tuple[Tensor, Tensor]:
        mean, var = running_moments(self.decoder_norm)
        return mean - bias_of(self.decoder), var

    def _decoder_affine(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift that fold the decoder's bias and batch norm."""
        scale = self.decoder_norm.weight * torch.rsqrt(var + self.decoder_norm.eps)
        return scale, self.decoder_norm.bias - mean * scale


class FoldedDPT(nn.Module):
    """The DPT for inference: batch norms folded, matrices in the order of the operations and in ``dtype``.

    Vectors stay in float32. In float32 it computes what the DPT computes, bit for bit, and in 16 bit with other
    roundings, since the layer norms are folded, too; nothing is prepared in a call.
    """

    def __init__(self, dpt: DPT, dtype: torch.dtype) -> None:
        super().__init__()
        self.stages = [(layer.heads, layer.axis) for layer in dpt.layers]
        self.norms_folded = dtype.itemsize == 2
        with torch.no_grad():
            front, front_bias = fold_batch_norm(dpt.front, dpt.front_norm)
            encoder, encoder_bias = fold_batch_norm(dpt.encoder, dpt.encoder_norm)
            scale, shift = dpt._decoder_affine(*dpt._running_moments())
            self._keep("front", front.to(dtype), front_bias)
            self._keep("encoder", encoder_matrix(encoder).to(dtype), encoder_bias)
            self._keep("decoder", decoder_matrix(dpt.decoder.weight).to(dtype))
            self._keep("head", scale, shift, dpt.head.weight.flatten(), bias_of(dpt.head))
            for number, layer in enumerate(dpt.layers):
                weights = layer.weights().folded() if self.norms_folded else layer.weights()
                self._keep(f"layer{number}", *weights.with_matrices_in(dtype))

    def _keep(self, name: str, *tensors: Tensor) -> None:
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"{name}_{index}", tensor.detach().clone(memory_format=torch.contiguous_format))

    def _kept(self, name: str, count: int) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"{name}_{index}") for index in range(count))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Complex (B, 257, T) -> complex (B, 257, T)."""
        front, front_bias = self._kept("front", 2)
        matrix, bias = self._kept("encoder", 2)
        x = fastenh_kernels.encoder_front(spectrum, front, front_bias, relu=True)
        x = skip = fastenh_kernels.encoder_conv(x, matrix, bias, relu=True).contiguous()
        for number, (heads, axis) in enumerate(self.stages):
            x = fastenh_kernels.axis_layer(
                x,
                fastenh_kernels.AxisLayerWeights(*self._kept(f"layer{number}", 12)),
                heads,
                axis,
                folded=self.norms_folded,
            )
        z = fastenh_kernels.decoder_taps(x, skip, *self._kept("decoder", 1))
        scale, shift, weight, bias = self._kept("head", 4)
        return fastenh_kernels.mask_head(z, scale, shift, weight, bias, spectrum)


def encoder_matrix(weight: Tensor) -> Tensor:
    """(C', C, 3 frequency taps, 3 time taps) -> (3 time taps, 3 frequency taps x C, C')."""
    return weight.permute(3, 2, 1, 0).flatten(1, 2)


def decoder_matrix(weight: Tensor) -> Tensor:
    """(C', C, 3 frequency taps, 3 time taps) -> (3 time taps, C, 3 frequency taps x C')."""
    return weight.permute(3, 1, 2, 0).flatten(2)
