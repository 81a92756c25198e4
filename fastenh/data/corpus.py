"""Recordings held in memory as 16 kHz mono, 16 bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastenh.audio.files import AudioError, list_audio, read_mono


class Corpus:
    """The recordings of one or more folders, decoded once.

    Indexing gives float32 in -1..1; the store is int16, so that a hundred hours take 11.5 GB.
    """

    def __init__(self, recordings: Sequence[np.ndarray], sample_rate: int) -> None:
        self.recordings, self.sample_rate = recordings, sample_rate
        self.seconds = sum(r.size for r in recordings) / sample_rate

    @classmethod
    def load(cls, folders: Sequence[Path], sample_rate: int) -> Corpus:
        """Raises ``AudioError`` for a file that cannot be read, and where there is none."""
        files = [file for folder in folders for file in list_audio(folder)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            recordings = list(pool.map(lambda file: _to_int16(read_mono(file, sample_rate)), files))
        kept = [samples for samples in recordings if samples.size]
        if not kept:
            raise AudioError(f"{', '.join(map(str, folders))}: no audio files with samples in them")
        return cls(kept, sample_rate)

    def split(self, every: int) -> tuple[Corpus, Corpus]:
        """(the rest, every ``every``-th recording); a corpus too small to be split is on both sides."""
        if len(self) < 2 * every:
            return self, self
        held_out = range(0, len(self), every)
        rest = [i for i in range(len(self)) if i % every]
        return self._take(rest), self._take(held_out)

    def _take(self, indices: Sequence[int]) -> Corpus:
        return Corpus([self.recordings[i] for i in indices], self.sample_rate)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.recordings[index].astype(np.float32) / 32768.0

    def crop(self, index: int, start: int, length: int) -> np.ndarray:
        """``length`` samples from ``start`` on, the recording repeated where it ends."""
        recording = self.recordings[index]
        piece = recording[start : start + length]
        if piece.size < length:
            piece = np.take(recording, np.arange(start, start + length), mode="wrap")
        return piece.astype(np.float32) / 32768.0


def _to_int16(samples: np.ndarray) -> np.ndarray:
    samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    return np.rint(np.clip(samples, -1.0, 32767 / 32768) * 32768.0).astype(np.int16)
