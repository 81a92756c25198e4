"""Batches by number: the same seed and step give the same batch, so that a run can go on where it stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastenh.data.mixing import Mixer
from fastenh.data.pairs import Pair, load_pair

Batch = tuple[Tensor, Tensor]  # noisy, clean: float32 (B, L)


class Feed(Protocol):
    steps_per_epoch: int

    def batch(self, step: int) -> Batch:
        """Batch number ``step``."""


class MixFeed:
    """Pairs mixed on the fly; an epoch is a number of steps."""

    def __init__(self, mixer: Mixer, batch_size: int, steps_per_epoch: int) -> None:
        self.mixer, self.batch_size, self.steps_per_epoch = mixer, batch_size, steps_per_epoch

    def batch(self, step: int) -> Batch:
        first = step * self.batch_size
        return _stack([self.mixer.pair(first + i) for i in range(self.batch_size)])


class PairFeed:
    """Crops of recorded pairs; an epoch shows each pair once, in an order of its own.

    Both sides of a pair are cut at one start, drawn once: two draws would pair speech with other speech.
    """

    def __init__(self, pairs: Sequence[Pair], batch_size: int, length: int, sample_rate: int, seed: int) -> None:
        self.pairs, self.batch_size, self.length = pairs, batch_size, length
        self.sample_rate, self.seed = sample_rate, seed
        self.steps_per_epoch = -(-len(pairs) // batch_size)

    def batch(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        return _stack([self._crop(int(index), epoch) for index in chosen])

    def _crop(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        noisy, clean, _ = load_pair(self.pairs[index], self.sample_rate)
        rng = np.random.default_rng([self.seed, epoch, index])
        start = int(rng.integers(max(1, noisy.size - self.length + 1)))
        stop = start + self.length
        padding = (0, max(0, self.length - noisy.size))
        return np.pad(noisy[start:stop], padding), np.pad(clean[start:stop], padding)


def prefetch(feed: Feed, first: int, workers: int = 2) -> Iterator[Batch]:
    """Batches from number ``first`` on, made ahead of their use in threads."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Batch]] = deque()
        step = first
        try:
            while True:
                while len(waiting) <= workers:
                    waiting.append(pool.submit(feed.batch, step))
                    step += 1
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _stack(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    noisy, clean = (torch.from_numpy(np.stack(side).astype(np.float32)) for side in zip(*pairs, strict=True))
    return noisy, clean
