"""From microphone to headphones: between the device's callback and the model, which has a thread of its own.

The callback must return within the length of its block (some milliseconds), which no model in Python can promise; so
it does nothing but copy samples from and to two queues, neither of which can grow without bound.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastenh.enhance.blend import silenced
from fastenh.enhance.live import LiveEnhancer

_WAIT = 0.1  # seconds after which the thread looks whether it is to end
_FACTOR = 0.05  # of the newest in the running mean of the real-time factor
_QUIETEST = 1e-6  # -120 dBFS


@dataclass
class Reading:
    """How it goes. Levels are RMS in dBFS of the last block; frames are samples of each channel."""

    seconds: float = 0.0  # of sound from the device
    input_db: float = -120.0
    output_db: float = -120.0
    real_time_factor: float = 0.0  # seconds of work for a second of sound, lately
    underruns: int = 0  # blocks of the device that the model was late for, in part or as a whole
    silent_frames: int = 0  # that were played instead
    overruns: int = 0  # blocks from the device for which there was no room
    lost_frames: int = 0  # of them
    device: dict[str, int] = field(default_factory=dict)  # what the device itself told of: kind -> times


class Queue:
    """Frames (C, n) that wait, up to ``most`` of them; for one thread that puts and one that takes."""

    def __init__(self, channels: int, most: int) -> None:
        self.most, self.frames = most, 0
        self._blocks: deque[np.ndarray] = deque()
        self._nothing = np.zeros((channels, 0), np.float32)
        self._lock = threading.Lock()

    def put(self, block: np.ndarray) -> int:
        """The number of frames, from the end of the block, for which there was no room."""
        with self._lock:
            taken = min(block.shape[1], self.most - self.frames)
            if taken:
                self._blocks.append(block[:, :taken])
                self.frames += taken
        return block.shape[1] - taken

    def take(self, most: int) -> np.ndarray:
        with self._lock:
            parts = [self._nothing]
            while most and self._blocks:
                block = self._blocks.popleft()
                if block.shape[1] > most:
                    self._blocks.appendleft(block[:, most:])
                    block = block[:, :most]
                parts.append(block)
                most -= block.shape[1]
                self.frames -= block.shape[1]
        return np.concatenate(parts, axis=1)


class Duplex:
    """Runs ``live`` between a device's input and output. Use it as a context; ``callback`` is for sounddevice.Stream.

    cushion: seconds that the output is held back beyond ``live.delay``: a block of the device, and the time that the
    model may take. backlog: seconds of input that may wait for the model. The output is always ``latency`` frames
    behind the input: what the model is late with is played as silence and left out when it comes, and what is lost at
    the input is played as silence.
    """

    def __init__(self, live: LiveEnhancer, cushion: float = 0.02, backlog: float = 0.5) -> None:
        self.live, self.reading = live, Reading()
        rate, channels = live.sample_rate, live.channels
        self._given = Queue(channels, max(1, round(backlog * rate)))
        self._made = Queue(channels, round((backlog + cushion) * rate) + 2 * live.delay)
        self.latency = live.delay + round(cushion * rate)  # frames from the input to the output
        self._made.put(np.zeros((channels, self.latency), np.float32))
        self._late = 0  # frames that were played as silence and are still to come; below 0: that are to be
        self._gap = 0  # frames that were lost behind those that wait
        self._lock = threading.Lock()  # of these two
        self._changed = threading.Event()
        self._ends = self.is_busy = False
        self.error: Exception | None = None  # what ended the thread
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Duplex:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._changed.set()
        self._thread.join()

    def callback(self, indata: np.ndarray, outdata: np.ndarray, frames: int, when: Any, status: Any) -> None:
        """float32 (frames, C) each; the output may have more channels than the input, which are given the last one."""
        reading = self.reading
        if status:
            self._note(status)
        block = indata[:, : self.live.channels].T.copy()  # the device writes over it
        lost = self._given.put(block)
        self._changed.set()
        if lost:
            reading.overruns += 1
            reading.lost_frames += lost
        made = self._due(frames, lost)
        outdata[:] = made.T[:, [min(c, len(made) - 1) for c in range(outdata.shape[1])]]
        reading.seconds += frames / self.live.sample_rate
        reading.input_db, reading.output_db = _level(block), _level(made)

    def _due(self, frames: int, lost: int) -> np.ndarray:
        """What is to be played now; silence for what is not there."""
        with self._lock:
            self._gap += lost
            if self._late > 0:
                self._late -= self._made.take(self._late).shape[1]
            silent = min(frames, max(0, -self._late))
            made = self._made.take(frames - silent)
            missing = frames - silent - made.shape[1]
            self._late += silent + missing
        if missing:
            self.reading.underruns += 1
            self.reading.silent_frames += missing
        return np.pad(made, ((0, 0), (silent, missing)))

    def _note(self, status: Any) -> None:
        for kind in ("input_underflow", "input_overflow", "output_underflow", "output_overflow"):
            if getattr(status, kind, False):
                self.reading.device[kind] = self.reading.device.get(kind, 0) + 1

    def _work(self) -> None:
        """Takes all that waits: who is behind gets larger blocks, which cost less a sample, and so catches up."""
        try:
            while not self._ends:
                self.is_busy = False
                self._changed.wait(_WAIT)
                self.is_busy = True
                self._changed.clear()
                block = self._given.take(self._given.most)
                if not block.shape[1]:
                    continue
                began = time.perf_counter()
                made = self.live.feed(block)
                factor = (time.perf_counter() - began) * self.live.sample_rate / block.shape[1]
                self.reading.real_time_factor += _FACTOR * (factor - self.reading.real_time_factor)
                self._made.put(made)
                with self._lock:
                    self._late, self._gap = self._late - self._gap, 0
        except Exception as error:  # who plays it must hear of it
            self.error = error

    @property
    def waiting(self) -> int:
        """Frames of input that the model has not taken yet."""
        return self._given.frames


def _level(block: np.ndarray) -> float:
    """dBFS."""
    power = float(np.square(silenced(block), dtype=np.float64).mean()) if block.size else 0.0
    return 10 * float(np.log10(max(power, _QUIETEST**2)))
