"""One recording of the demo: within its limits, enhanced step by step, and compared with what it was."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastenh.audio import files
from fastenh.audio.files import Encoding
from fastenh.audio.resampling import resample
from fastenh.data.pairs import Pair, PairError, load_pair
from fastenh.demo.loudness import equally_loud, loudness
from fastenh.enhance.enhancer import Enhancer
from fastenh.errors import ProcessingError
from fastenh.evaluate import metrics
from fastenh.models.frontend import SAMPLE_RATE

_JUDGED = 60  # seconds that the metrics look at: PESQ takes its time
_PLAYED = 8_000, 48_000  # Hz that browsers are sure to play


class RecordingError(ProcessingError):
    """A recording that the demo does not take; the message names it."""


@dataclass(frozen=True)
class Limits:
    """What the demo takes at the most; a megabyte is 2^20 bytes here, as it is to gradio."""

    megabytes: float = 100
    minutes: float = 10


@dataclass
class Comparison:
    """A recording before and after: the mean of its channels (L,) at ``rate``, and what there is to say about it."""

    before: np.ndarray
    after: np.ndarray
    rate: int
    enhanced: Path  # the file, with all channels
    remarks: list[str]
    scores: dict[str, dict[str, float | str]] = field(default_factory=dict)  # "before", "after" -> metric -> value

    def loudness(self) -> tuple[float | None, float | None]:
        """LUFS before and after."""
        return loudness(self.before, self.rate), loudness(self.after, self.rate)

    def write_for_listening(self, path: Path) -> float:
        """A WAV file of two channels, before and after, equally loud; the dB that after was turned up by.

        Not FLAC: Chromium stops where one asks it to go on near the end of such a file.
        """
        rate = min(max(self.rate, _PLAYED[0]), _PLAYED[1])
        before, after, gain = equally_loud(self.before, self.after, self.rate)
        both = np.clip(resample(np.stack([before, after]), self.rate, rate), -1.0, 1.0)
        files.write(path, both, Encoding(rate, 2, "WAV", "PCM_16"))
        return gain


def enhance(
    source: Path, enhancer: Enhancer, atten_lim_db: float | None, limits: Limits, target: Path
) -> Generator[tuple[float, float], None, Comparison]:
    """Yields (seconds done, seconds in all) and returns the comparison; to stop it, close it.

    Raises ``RecordingError`` beyond the limits, and what reading and enhancing raise.
    """
    total = _checked_seconds(source, limits)
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    remarks: list[str] = []
    with files.reading(source) as reader:
        encoding = reader.encoding

        def heard() -> Iterator[np.ndarray]:
            for block in reader.blocks():
                before.append(block.mean(axis=0))
                yield block

        blocks = enhancer.stream(heard(), encoding.channels, encoding.sample_rate, atten_lim_db, remarks=remarks)
        with files.writing(target, encoding, round(total * encoding.sample_rate)) as writer:
            for block in blocks:
                writer.write(block)
                after.append(block.mean(axis=0))
                yield sum(map(len, after)) / encoding.sample_rate, total
    if encoding.sample_rate > SAMPLE_RATE:
        remarks.append("the pictures end at 8 kHz")
    remarks = [*reader.warnings, *remarks, *writer.warnings]
    return Comparison(_joined(before), _joined(after), encoding.sample_rate, target, remarks)


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    return np.nan_to_num(np.concatenate(blocks), posinf=0.0, neginf=0.0)


def judge(comparison: Comparison, source: Path, clean: Path) -> None:
    """The metrics of both versions against a clean reference; where they cannot be had, a remark says why."""
    try:
        noisy, reference, warnings = load_pair(Pair(source.stem, source, clean), SAMPLE_RATE)
    except PairError as error:
        comparison.remarks.append(f"no metrics: {error}")
        return
    comparison.remarks += warnings
    length = min(reference.size, _JUDGED * SAMPLE_RATE)
    if length < reference.size:
        comparison.remarks.append(f"the metrics are those of the first {_JUDGED} seconds")
    after = resample(comparison.after[None], comparison.rate, SAMPLE_RATE, reference.size)[0]
    for name, waveform in (("before", noisy), ("after", after)):
        comparison.scores[name] = metrics.score(waveform[:length], reference[:length], metrics.available())


def _checked_seconds(source: Path, limits: Limits) -> float:
    """How long the recording is, counted: headers can lie."""
    size = source.stat().st_size / 2**20
    if size > limits.megabytes:
        raise RecordingError(f"{source}: {size:.0f} MB, and this demo takes {limits.megabytes:g} MB at the most")
    frames = 0
    with files.reading(source) as reader:
        for block in reader.blocks():
            frames += block.shape[1]
            if frames > limits.minutes * 60 * reader.encoding.sample_rate:
                raise RecordingError(f"{source}: longer than the {limits.minutes:g} minutes that this demo takes")
    if not frames:
        raise RecordingError(f"{source}: there is no sound in it")
    return frames / reader.encoding.sample_rate
