"""Random numbers by address: what is drawn for an example depends on the seed and its number alone, not on the batch
it is in, the device, or what was drawn for others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_BLOCK = 128  # numbers made at once: a plan takes them one by one, a GPU would rather not make them so
_GAMMA = 0x9E3779B97F4A7C15
_BRANCH, _NORMAL, _UNIFORM = 1 << 40, 2 << 40, 3 << 40  # streams of one key


class Draws:
    """The random numbers of a batch of examples, a row each.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") on the example's key and
    a counter: no state, hence the same bits on every device and for every way of cutting examples into batches.
    """

    def __init__(self, keys: Tensor) -> None:
        """keys: int64 (B,)."""
        self._keys = keys
        self._spare: list[Tensor] = []
        self._streams = 0

    @classmethod
    def of(cls, seed: int, examples: Sequence[int] | range, device: torch.device) -> Draws:
        numbers = torch.tensor(list(examples), dtype=torch.int64).to(device)
        return cls(_mix(_mix(numbers + _signed(seed * _GAMMA)) + 1))

    @property
    def device(self) -> torch.device:
        return self._keys.device

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """Return float64 (B, *shape) in [low, high)."""
        count = math.prod(shape)
        if len(self._spare) < count:
            self._spare = list(_uniform(self._stream(_UNIFORM), max(count, _BLOCK)).unbind(1))
        taken, self._spare = self._spare[:count], self._spare[count:]
        return low + (high - low) * torch.stack(taken, 1).reshape(-1, *shape)

    def integers(self, low: int, high: int | Tensor, *shape: int) -> Tensor:
        """Return int64 (B, *shape), low <= n < high, where ``high`` may differ from row to row."""
        return (low + (high - low) * self.uniform(0.0, 1.0, *shape)).long()

    def chance(self, probability: float) -> Tensor:
        """Return bool (B,), each true with the given probability."""
        return self.uniform() < probability

    def normal(self, length: int) -> Tensor:
        """Return float32 (B, length), Gaussian: Box and Muller 1958."""
        pairs = -(-length // 2)
        radius, angle = _uniform(self._stream(_NORMAL), 2 * pairs).split(pairs, dim=1)
        radius, angle = (-2 * torch.log1p(-radius)).sqrt().float(), (2 * math.pi * angle).float()
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :length]

    def on_rows(self, chosen: Tensor, change: Callable[[Draws, Tensor], Tensor], x: Tensor) -> Tensor:
        """``x`` (B, ...), the rows of ``chosen`` (B,) replaced by ``change(draws, rows)``; no others are computed, but
        for those that fill a GPU's rows up to a multiple: it plans a Fourier transform anew for every number of rows.
        """
        keys = self._stream(_BRANCH)
        count = int(chosen.sum())
        if not count:
            return x
        rows = chosen.byte().argsort(descending=True, stable=True)
        multiple = _multiple(x.device)
        computed = rows[: -(-count // multiple) * multiple]
        changed = change(Draws(keys[computed]), x[computed])
        return x.index_copy(0, rows[:count], changed[:count])

    def _stream(self, kind: int) -> Tensor:
        """Keys for one more purpose."""
        self._streams += 1
        return _mix(self._keys + (kind + self._streams))


def _multiple(device: torch.device) -> int:
    """Of which the number of rows that are computed is one."""
    return 1 if device.type == "cpu" else 16


def _uniform(keys: Tensor, count: int) -> Tensor:
    """float64 (B, count) in [0, 1), 53 bits each."""
    steps = torch.arange(1, count + 1, device=keys.device) * _signed(_GAMMA)
    return _shift(_mix(keys.unsqueeze(1) + steps), 11).double() * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """The logical shift to the right: int64 has the arithmetic one alone."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
