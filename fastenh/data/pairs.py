"""Noisy recordings and their clean references, matched by name."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastenh.audio.files import AudioError, count_frames, read_mono
from fastenh.audio.listing import list_audio
from fastenh.data.broken import left_out
from fastenh.errors import ProcessingError
from fastenh.remote import reported

_TOLERATED_LAG = 0.010  # seconds: less is an offset of the recording chain, more is another take
_SEARCHED_LAG = 0.5


class PairError(ProcessingError, ValueError):
    """Pairs that cannot be trained or judged on; the message names the files."""


@dataclass(frozen=True)
class Pair:
    name: str
    noisy: Path
    clean: Path


def match_pairs(noisy: Path, clean: Path, warnings: list[str] | None = None) -> list[Pair]:
    """Match two folders (or two files) by path below the folder, else by file name without its ending.

    Nested folders are searched, so that an archive's own top folder does no harm.
    Raises ``PairError`` for a missing partner, for two files of one name, and for a pair that cannot be read or whose
    lengths differ, unless there is ``warnings``, which then names it, and it is left out (``broken.py``: if they are
    few).
    """
    are_files = []
    for path in (noisy, clean):
        with reported(path):
            if not path.exists():
                raise PairError(f"{path}: no such file or folder")
            are_files.append(path.is_file())
    if all(are_files):
        pairs = [Pair(noisy.stem, noisy, clean)]
    else:
        pairs = _match(_by_path(noisy), _by_path(clean)) or _match_strictly(noisy, clean)
    if warnings is None:
        for pair in pairs:
            _check_lengths(pair)
        return pairs
    checked = [(pair, _complaint(pair)) for pair in pairs]
    warnings += left_out([complaint for _, complaint in checked if complaint], len(pairs))
    return [pair for pair, complaint in checked if not complaint]


def _complaint(pair: Pair) -> str:
    try:
        _check_lengths(pair)
    except PairError as error:
        return str(error)
    return ""


def _by_path(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in list_audio(folder)}


def _match(noisy: dict[str, Path], clean: dict[str, Path]) -> list[Pair]:
    if not noisy or noisy.keys() != clean.keys():
        return []
    return [Pair(name, noisy[name], clean[name]) for name in sorted(noisy)]


def _match_strictly(noisy_folder: Path, clean_folder: Path) -> list[Pair]:
    noisy, clean = _by_stem(noisy_folder), _by_stem(clean_folder)
    for mine, theirs, folder in ((noisy, clean, clean_folder), (clean, noisy, noisy_folder)):
        lonely = sorted(mine.keys() - theirs.keys())
        if lonely:
            more = f" (and {len(lonely) - 1} more like it)" if len(lonely) > 1 else ""
            raise PairError(f"{mine[lonely[0]]}: no partner of that name in {folder}{more}")
    return [Pair(name, noisy[name], clean[name]) for name in sorted(noisy)]


def _by_stem(folder: Path) -> dict[str, Path]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in list_audio(folder):
        groups[path.stem].append(path)
    if not groups:
        raise PairError(f"{folder}: no audio files")
    for paths in groups.values():
        if len(paths) > 1:
            raise PairError(f"{paths[0]} and {paths[1]}: the same name twice, so the pair is not certain")
    return {stem: paths[0] for stem, paths in groups.items()}


def _check_lengths(pair: Pair) -> None:
    try:
        lengths = [count_frames(path) for path in (pair.noisy, pair.clean)]
    except AudioError as error:
        raise PairError(str(error)) from error
    if lengths[0] != lengths[1] and _differ_in_seconds(pair):
        raise PairError(f"{pair.noisy} has {lengths[0]} frames and {pair.clean} {lengths[1]}: not a pair")


def _differ_in_seconds(pair: Pair) -> bool:
    """Whether the decoded lengths differ too: sides of different rates do not, nor do estimates in mp3 headers."""
    noisy, clean = (read_mono(path, 16_000).size for path in (pair.noisy, pair.clean))
    return abs(noisy - clean) > 1


def load_pair(pair: Pair, sample_rate: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return (noisy (L,), clean (L,), warnings), mono at ``sample_rate``.

    Raises ``PairError`` where the lengths differ, or the clean side is found displaced by more than 10 ms.
    A smaller displacement is a warning.
    """
    try:
        noisy, clean = read_mono(pair.noisy, sample_rate), read_mono(pair.clean, sample_rate)
    except AudioError as error:
        raise PairError(str(error)) from error
    if abs(noisy.size - clean.size) > 1:
        raise PairError(f"{pair.noisy} has {noisy.size} samples and {pair.clean} {clean.size}: not a pair")
    length = min(noisy.size, clean.size)
    noisy, clean = noisy[:length], clean[:length]
    lag = find_lag(noisy, clean, round(_SEARCHED_LAG * sample_rate))
    if abs(lag) > _TOLERATED_LAG * sample_rate:
        raise PairError(f"{pair.clean} and {pair.noisy}: {lag} samples apart, the pair is misaligned")
    warnings = [f"{pair.clean} and {pair.noisy}: {lag} samples apart"] if lag else []
    return noisy, clean, warnings


def find_lag(noisy: np.ndarray, clean: np.ndarray, limit: int) -> int:
    """Samples by which the speech in ``noisy`` lies behind ``clean``, within ``limit``; 0 where that is not certain.

    The peak of the cross-correlation with phase transform (Knapp and Carter 1976): sharp to the sample where the
    plain one is as wide as a pitch period. It counts if it stands well above the value at 0 and above chance.
    """
    if not noisy.any() or not clean.any():
        return 0
    size = noisy.size + clean.size
    spectrum = np.fft.rfft(noisy, size) * np.conj(np.fft.rfft(clean, size))
    correlation = np.fft.irfft(spectrum / np.maximum(np.abs(spectrum), 1e-12 * np.abs(spectrum).max()), size)
    limit = min(limit, size // 2 - 1)
    near = np.concatenate([correlation[size - limit :], correlation[: limit + 1]])
    best = int(near.argmax())
    chance = 10.0 / np.sqrt(size)  # the values of unrelated signals have a deviation of 1 / sqrt(size)
    return best - limit if near[best] > max(2.0 * near[limit], chance) else 0
