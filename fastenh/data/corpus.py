"""Recordings as 16 kHz mono, 16 bit, in one tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastenh.atomic import fetched, replacing
from fastenh.audio.files import AudioError, read_mono
from fastenh.audio.listing import list_audio
from fastenh.data.broken import left_out

PACK_SUFFIX = ".safetensors"
_PACK_FORMAT = 1


class Corpus:
    """Recordings one after the other in ``samples``, int16 (N,): a hundred hours take 11.5 GB."""

    def __init__(self, samples: Tensor, sizes: Tensor, starts: Tensor, sample_rate: int) -> None:
        """sizes, starts: int64 (recordings,), where each lies in ``samples``."""
        self.samples, self.sizes, self.starts, self.sample_rate = samples, sizes, starts, sample_rate
        self.seconds = float(sizes.sum()) / sample_rate

    @classmethod
    def of(cls, recordings: Sequence[np.ndarray], sample_rate: int) -> Corpus:
        """Make a corpus from int16 arrays."""
        sizes = torch.tensor([recording.size for recording in recordings], dtype=torch.int64)
        samples = torch.from_numpy(np.concatenate(recordings, dtype=np.int16))
        return cls(samples, sizes, sizes.cumsum(0) - sizes, sample_rate)

    @classmethod
    def load(cls, sources: Sequence[Path], sample_rate: int, warnings: list[str] | None = None) -> Corpus:
        """Load recordings: folders are decoded; packs are mapped, so that what is not touched stays on the disk.

        ``warnings`` names files that were cut, and those that cannot be read, which are left out. Raises
        ``AudioError`` where there are more than a few of these (``broken.py``), and where there is no recording.
        """
        parts = [_unpack(path, sample_rate) for path in sources if path.suffix == PACK_SUFFIX]
        files = [file for path in sources if path.suffix != PACK_SUFFIX for file in list_audio(path)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            remarks: list[str] = []
            decoded = list(pool.map(lambda file: _decode(file, sample_rate, remarks), files))
        errors = [str(item) for item in decoded if isinstance(item, AudioError)]
        found = left_out(errors, len(files))
        if warnings is not None:
            warnings += found + sorted(remarks)
        recordings = [item for item in decoded if isinstance(item, np.ndarray) and item.size]
        parts += [cls.of(recordings, sample_rate)] if recordings else []
        if not parts:
            raise AudioError(f"{', '.join(map(str, sources))}: no audio files with samples in them")
        return parts[0] if len(parts) == 1 else _join(parts)

    def save(self, path: Path) -> None:
        """Write a pack, atomically."""
        order = np.concatenate([self.recording(i) for i in range(len(self))])
        header = {"format": _PACK_FORMAT, "sample_rate": self.sample_rate}
        tensors = {"samples": torch.from_numpy(order), "sizes": self.sizes.cpu()}
        with replacing(path, mode=0o644) as temporary:
            save_file(tensors, temporary, metadata={"fastenh.corpus": json.dumps(header)})

    def to(self, device: torch.device) -> Corpus:
        """Return the same corpus on a device, where the whole of it has to fit."""
        samples, sizes, starts = (tensor.to(device) for tensor in (self.samples, self.sizes, self.starts))
        return Corpus(samples, sizes, starts, self.sample_rate)

    @property
    def device(self) -> torch.device:
        return self.samples.device

    @property
    def bytes(self) -> int:
        return self.samples.nbytes

    def split(self, every: int) -> tuple[Corpus, Corpus]:
        """Return (the rest, every ``every``-th recording); a corpus too small to be split is on both sides."""
        if len(self) < 2 * every:
            return self, self
        held_out = torch.arange(len(self), device=self.device) % every == 0
        return self._take(~held_out), self._take(held_out)

    def _take(self, chosen: Tensor) -> Corpus:
        return Corpus(self.samples, self.sizes[chosen], self.starts[chosen], self.sample_rate)

    def __len__(self) -> int:
        return self.sizes.numel()

    def recording(self, index: int) -> np.ndarray:
        """Return one recording, int16 (L,)."""
        start, size = int(self.starts[index]), int(self.sizes[index])
        return self.samples[start : start + size].cpu().numpy()

    def at(self, index: Tensor, position: Tensor) -> Tensor:
        """float32 in -1..1, of the shape of ``position``: samples of the recordings ``index`` (one for each row, or
        of a shape that ``position`` has in front), from 0 on; behind the last there are zeros."""
        index = index.reshape(*index.shape, *(1,) * (position.ndim - index.ndim))
        size = self.sizes[index]
        address = self.starts[index] + torch.minimum(position, size - 1)
        return self.samples[address] * ((position < size) / 32768.0)

    def wrapped(self, index: Tensor, start: Tensor, length: int) -> Tensor:
        """float32 (*index.shape, length) from ``start`` on, the recordings repeated where they end."""
        steps = torch.arange(length, device=self.device)
        return self.at(index, (start.unsqueeze(-1) + steps) % self.sizes[index].unsqueeze(-1))


def to_int16(samples: np.ndarray) -> np.ndarray:
    samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    return np.rint(np.clip(samples, -1.0, 32767 / 32768) * 32768.0).astype(np.int16)


def _decode(path: Path, sample_rate: int, warnings: list[str]) -> np.ndarray | AudioError:
    try:
        return to_int16(read_mono(path, sample_rate, warnings))
    except AudioError as error:
        return error


def _unpack(path: Path, sample_rate: int) -> Corpus:
    try:
        with fetched(path) as local, safe_open(local, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("fastenh.corpus", "null"))
            if not isinstance(header, dict) or header.get("format") != _PACK_FORMAT:
                raise AudioError(f"{path}: not a corpus packed by this fastenh (fastenh data pack makes one)")
            samples, sizes = file.get_tensor("samples"), file.get_tensor("sizes")
    except (OSError, SafetensorError, ValueError) as error:
        raise AudioError(f"{path}: not a readable pack ({error})") from error
    if header["sample_rate"] != sample_rate:
        raise AudioError(f"{path}: packed at {header['sample_rate']} Hz, {sample_rate} Hz are needed")
    if samples.dtype != torch.int16 or not len(sizes) or int(sizes.min()) < 1 or int(sizes.sum()) != samples.numel():
        raise AudioError(f"{path}: damaged, its recordings do not fill it")
    return Corpus(samples, sizes, sizes.cumsum(0) - sizes, sample_rate)


def _join(parts: Sequence[Corpus]) -> Corpus:
    offsets = np.cumsum([0, *(part.samples.numel() for part in parts[:-1])])
    starts = [part.starts + int(offset) for part, offset in zip(parts, offsets, strict=True)]
    samples, sizes = torch.cat([part.samples for part in parts]), torch.cat([part.sizes for part in parts])
    return Corpus(samples, sizes, torch.cat(starts), parts[0].sample_rate)
