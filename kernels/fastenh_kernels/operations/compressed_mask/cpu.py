"""``compressed_mask`` on a processor, where no gradient is needed: its convolution is a plain one of four bins at a
time, 3.4 times as fast as a transposed one, and spectra stay complex."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastenh_kernels.operations.compressed_mask import reference
from fastenh_kernels.shared.compression import EPS, raised, squares
from fastenh_kernels.shared.context import needs_gradient


def compressed_mask(x: Tensor, weight: Tensor, bias: Tensor, spectrum: Tensor, power: float, ahead: int) -> Tensor:
    if needs_gradient(x, weight, bias, spectrum):
        return reference.compressed_mask(x, weight, bias, spectrum, power, ahead)
    frames = spectrum[:, :-1].transpose(1, 2)
    masked = frames * raised(squares(frames).add_(EPS), (power - 1) / 2)
    masked.mul_(torch.view_as_complex(_mask(x, weight, bias, ahead).to(masked.real.dtype)))
    out = masked.new_zeros(spectrum.transpose(1, 2).shape)
    torch.mul(masked, raised(squares(masked).add_(EPS), (1 / power - 1) / 2), out=out[..., :-1])
    return out.transpose(1, 2)


def _mask(x: Tensor, weight: Tensor, bias: Tensor, ahead: int) -> Tensor:
    """Real pairs (B, T, 256, 2). Four bins at a time lie under the second half of one band's taps and the first of the
    next one's: a convolution over two bands with four times as many channels, and two bins too many at either edge."""
    halves = weight.to(x.dtype).unflatten(2, (2, 4)).permute(3, 1, 0, 4, 2).flip(3, 4)
    taps = halves.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # (4 bins * 2, C, 3 frames, 2 bands)
    y = F.conv2d(x.permute(0, 3, 1, 2), taps, bias.to(x.dtype).repeat(4), padding=(2, 1))
    rows = y.permute(0, 2, 3, 1)[:, ahead : ahead + x.shape[1]].flatten(2)
    return rows[..., 4:-4].unflatten(2, (-1, 2))
