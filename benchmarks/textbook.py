"""The dual-path transformer as one would write it: the honest rival of every speed figure.

``nn.TransformerEncoderLayer`` with permutes for both axes, bilinear interpolation, then convolutions; its own weights
from a ``DPT``, so that both must give the same result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastenh.models.blocks import AxisLayer
from fastenh.models.dpt import DPT


class TextbookDPT(nn.Module):
    """In evaluation, with the weights of ``core``. Complex (B, 257, T) -> complex (B, 257, T)."""

    def __init__(self, core: DPT) -> None:
        super().__init__()
        c = core.encoder.out_channels
        self.encoder = nn.Sequential(core.front, core.front_norm, nn.ReLU(), core.encoder, core.encoder_norm, nn.ReLU())
        self.layers = nn.ModuleList(_encoder_layer(layer, c) for layer in core.layers)
        self.axes = [layer.axis for layer in core.layers]
        self.decoder = nn.Sequential(core.decoder, core.decoder_norm, nn.ReLU(), core.head)
        self.eval()

    def forward(self, spectrum: Tensor) -> Tensor:
        dtype = self.decoder[0].weight.dtype
        x = skip = self.encoder(torch.log1p(spectrum.abs()).unsqueeze(1).to(dtype))  # (B, C, 65, T)
        b, c, f, t = x.shape
        for layer, axis in zip(self.layers, self.axes, strict=True):
            if axis == "frequency":
                x = layer(x.permute(0, 3, 2, 1).reshape(b * t, f, c)).view(b, t, f, c).permute(0, 3, 2, 1)
            else:
                x = layer(x.permute(0, 2, 3, 1).reshape(b * f, t, c)).view(b, f, t, c).permute(0, 3, 1, 2)
        up = F.interpolate(x + skip, size=spectrum.shape[1:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.decoder(up)).squeeze(1).float() * spectrum


def _encoder_layer(layer: AxisLayer, channels: int) -> nn.TransformerEncoderLayer:
    made = nn.TransformerEncoderLayer(
        channels, layer.heads, layer.up.out_features, dropout=0.0, norm_first=True, batch_first=True
    )
    with torch.no_grad():
        made.self_attn.in_proj_weight.copy_(layer.qkv.weight)
        made.self_attn.in_proj_bias.copy_(layer.qkv.bias)
    made.self_attn.out_proj.load_state_dict(layer.out.state_dict())
    made.linear1, made.linear2, made.norm1, made.norm2 = layer.up, layer.down, layer.norm1, layer.norm2
    return made
