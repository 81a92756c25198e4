"""Layers that more than one model is built of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastenh_kernels


def initialise(module: nn.Module) -> None:
    """The origin's initialisation: Kaiming-normal (ReLU) for Conv and Linear, ones and zeros for batch norm."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def convolve_normalise(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``norm(conv(x))``; in evaluation one convolution, the batch norm folded into its weights."""
    if norm.training:
        return norm(conv(x))
    return conv._conv_forward(x, *fold_batch_norm(conv, norm))


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that is ``norm(conv(x))`` in evaluation."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = 0.0 if conv.bias is None else conv.bias
    return conv.weight * scale.view(-1, 1, 1, 1), (bias - norm.running_mean) * scale + norm.bias


class AxisLayer(nn.Module):
    """A pre-LN transformer encoder layer along one axis of (B, T, F, C): "frequency" or "time".

    Xiong et al. 2020, "On layer normalization in the transformer architecture" (pre-LN).
    """

    def __init__(
        self, channels: int, heads: int, feed_forward: int, dropout: float, axis: str, history: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.axis, self.history = heads, dropout, axis, history
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, feed_forward)
        self.down = nn.Linear(feed_forward, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F, C) -> (B, T, F, C)."""
        dropout = self.dropout if self.training else 0.0
        return fastenh_kernels.axis_layer(x, self.weights(), self.heads, self.axis, dropout, self.history)

    def weights(self) -> fastenh_kernels.AxisLayerWeights:
        modules = (self.norm1, self.qkv, self.out, self.norm2, self.up, self.down)
        return fastenh_kernels.AxisLayerWeights(*(p for m in modules for p in (m.weight, m.bias)))
