"""Batches by number: the same seed and step give the same batch, so that a run can go on where it stopped."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastenh.data.broken import left_out
from fastenh.data.mixing import Mixer
from fastenh.data.pairs import Pair, PairError, load_pair
from fastenh.errors import printable

log = logging.getLogger("fastenh")
Batch = tuple[Tensor, Tensor]  # noisy, clean: float32 (B, L)
_AT_ONCE = 1 << 25  # samples that a GPU mixes together at most: 35 minutes
_BYTES = 200  # of memory that a sample takes meanwhile


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several devices works on."""

    rank: int = 0
    ranks: int = 1

    def of(self, batch: Sequence[int] | range) -> Sequence[int] | range:
        """Share out the work of a batch. Raises ``ValueError`` for a batch that cannot be shared out evenly."""
        size, rest = divmod(len(batch), self.ranks)
        if rest:
            raise ValueError(f"a batch of {len(batch)} cannot be shared out evenly to {self.ranks} devices")
        return batch[self.rank * size : (self.rank + 1) * size]


class Feed(Protocol):
    steps_per_epoch: int
    device: torch.device  # on which batches are made

    def batch(self, step: int) -> Batch:
        """Return batch number ``step``, or this device's share of it."""


class MixFeed:
    """Pairs mixed on the fly; an epoch is a number of steps."""

    def __init__(self, mixer: Mixer, batch_size: int, steps_per_epoch: int, share: Share | None = None) -> None:
        self.mixer, self.batch_size, self.steps_per_epoch = mixer, batch_size, steps_per_epoch
        self.share = share or Share()
        self.device = mixer.speech.device

    def batch(self, step: int) -> Batch:
        return self.mixer.pairs(self._examples(step))

    def together(self, first: int) -> list[Batch]:
        """Batches from ``first`` on, many mixed at once: the thousands of small launches are then those of all of
        them, and a GPU is not kept waiting for its host. The bits are those of ``batch``, but for rounding."""
        count = max(1, _room(self.device) // (self.mixer.length * len(self._examples(0))))
        steps = range(first, first + count)
        sides = self.mixer.pairs([example for step in steps for example in self._examples(step)])
        return list(zip(*(side.chunk(count) for side in sides), strict=True))

    def _examples(self, step: int) -> Sequence[int] | range:
        return self.share.of(range(step * self.batch_size, (step + 1) * self.batch_size))


def _room(device: torch.device) -> int:
    """Samples to be mixed together: in an eighth of the memory that is free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 33
    return min(_AT_ONCE, free // (8 * _BYTES))


class PairFeed:
    """Crops of recorded pairs; an epoch shows each pair once, in an order of its own.

    Both sides of a pair are cut at one start, drawn once: two draws would pair speech with other speech. The last
    batch of an epoch is filled up from the beginning of its order: batches of one size are shared out evenly, and need
    no second compilation.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        pairs: Sequence[Pair],
        batch_size: int,
        length: int,
        sample_rate: int,
        seed: int,
        share: Share | None = None,
    ) -> None:
        self.pairs, self.batch_size, self.length = pairs, batch_size, length
        self.sample_rate, self.seed, self.share = sample_rate, seed, share or Share()
        self.steps_per_epoch = -(-len(pairs) // batch_size)
        self._broken: dict[int, str] = {}  # what was found so, in the order in which it was

    def batch(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))
        order = np.resize(order, self.steps_per_epoch * self.batch_size)
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size].tolist()
        return _stack([self._crop(index, epoch) for index in self.share.of(chosen)])

    def _crop(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        noisy, clean = self._load(index)
        rng = np.random.default_rng([self.seed, epoch, index])
        start = int(rng.integers(max(1, noisy.size - self.length + 1)))
        stop = start + self.length
        padding = (0, max(0, self.length - noisy.size))
        return np.pad(noisy[start:stop], padding), np.pad(clean[start:stop], padding)

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A pair that turns out to be broken is named and left out: the one behind it stands in for it."""
        for instead in (*range(index, len(self.pairs)), *range(index)):
            if instead in self._broken:
                continue
            try:
                return load_pair(self.pairs[instead], self.sample_rate)[:2]
            except PairError as error:
                self._broken[instead] = str(error)
                log.warning("warning: %s", printable(left_out(list(self._broken.values()), len(self.pairs))[-1]))
        raise AssertionError("left_out raises before all are broken")


def prefetch(feed: Feed, first: int, workers: int = 2) -> Generator[Batch, None, None]:
    """Batches from number ``first`` on, made ahead of their use in threads: on a GPU many at once."""
    if isinstance(feed, MixFeed) and feed.device.type != "cpu":
        yield from mixed_ahead(feed, first)
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


def mixed_ahead(feed: MixFeed, first: int) -> Iterator[Batch]:
    """The next batches are mixed while the last ones are trained on: in a thread, on CUDA in a stream of its own."""
    stream = torch.cuda.Stream(feed.device) if feed.device.type == "cuda" else None

    def mix(first: int) -> tuple[list[Batch], torch.cuda.Event | None]:
        with torch.cuda.stream(stream):  # nothing, without one
            return feed.together(first), None if stream is None else stream.record_event()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mix, first)
        while True:
            batches, mixed = waiting.result()
            first += len(batches)
            waiting = pool.submit(mix, first)
            if mixed is not None:
                mixed.wait()
                for side in batches[0]:  # all of a side share its memory
                    side.record_stream(torch.cuda.current_stream(feed.device))
            yield from batches


def _stack(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    noisy, clean = (torch.from_numpy(np.stack(side).astype(np.float32)) for side in zip(*pairs, strict=True))
    return noisy, clean
