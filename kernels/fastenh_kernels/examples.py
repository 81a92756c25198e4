"""The shapes of the models that are shipped, once, and the random arguments that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


class Shape(NamedTuple):
    """Shape of a dual path and what is around it: bins -> wide_bands of front_channels -> bands of channels."""

    bins: int
    wide_bands: int
    front_channels: int
    bands: int
    channels: int
    heads: int
    hidden: int  # of the feed-forward maps
    head_channels: int  # of the decoder before the mask


DPT = Shape(257, 129, 32, 65, 128, 4, 512, 64)
DPT_COMPLEX = Shape(257, 64, 32, 32, 64, 2, 128, 32)
HISTORY = 128  # frames that a live form of ``dpt_complex`` sees, 2 s: an example, models choose


@dataclass
class Inputs:
    """Random tensors of one dtype, the same for every device; on "meta" without values.

    Scales keep what is computed of them within the range of 16 bit.
    """

    device: torch.device
    dtype: torch.dtype
    clips: int = 2
    frames: int = 188  # of 3 s at 16 kHz, hop 256
    seed: int = 0
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def real(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if self.device.type == "meta":
            return torch.empty(shape, device="meta", dtype=dtype)
        return (scale * torch.randn(shape, generator=self._generator)).to(self.device, dtype)

    def vector(self, size: int) -> Tensor:
        """Biases, and the weights of norms: float32 in every dtype."""
        return self.real(size, dtype=torch.float32)

    def spectrum(self, bins: int) -> Tensor:
        """Complex (clips, bins, frames), bins side by side as ``torch.stft`` lays them."""
        return torch.view_as_complex(self.real(self.clips, self.frames, bins, 2, dtype=torch.float32)).transpose(1, 2)

    def activation(self, bands: int, channels: int) -> Tensor:
        """(clips, frames, bands, channels)."""
        return self.real(self.clips, self.frames, bands, channels)


def leaves(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with gradients asked for: of those that ask for one, or of all real tensors, or of all."""
    tensors = [value for value in tree_leaves(arguments) if isinstance(value, Tensor)]
    kinds: tuple[Callable[[Tensor], bool], ...] = (lambda tensor: tensor.requires_grad, Tensor.is_floating_point)
    asked = next((kind for kind in kinds if any(map(kind, tensors))), Tensor.is_complex)

    def leaf(value: Any) -> Any:
        return value.detach().requires_grad_() if isinstance(value, Tensor) and asked(value) else value

    return tree_map(leaf, arguments)
