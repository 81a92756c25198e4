"""From the [data] section of a recipe to batches and validation pairs, with the checks that save wasted runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastenh.data.corpus import Corpus
from fastenh.data.feed import Feed, MixFeed, PairFeed, Share
from fastenh.data.mixing import Mixer
from fastenh.data.pairs import Pair, PairError, load_pair, match_pairs
from fastenh.evaluate.metrics import MetricError, si_sdr
from fastenh.models.frontend import SAMPLE_RATE
from fastenh.train.recipe import DataConfig, Recipe, RecipeError

_IMPLAUSIBLE_DB = -15.0  # a mean noisy SI-SDR below this is misalignment, not noise
_CHECKED_PAIRS = 64
_HELD_OUT = 20  # every 20th recording or pair
_LONGEST = 10.0  # seconds of a validation pair
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sources:
    feed: Feed
    validation: list[tuple[np.ndarray, np.ndarray]]  # (noisy, clean), each (L,)
    description: str
    warnings: list[str]


def open_sources(recipe: Recipe, device: torch.device = _CPU, share: Share | None = None) -> Sources:
    """Open the data. Raises ``RecipeError`` where the recipe names too little or too much, ``PairError`` and
    ``AudioError`` where the files are not fit for training. Corpora that fit go to ``device``; ``share`` is its part of
    each batch."""
    data = recipe.data
    share = share or Share()
    parts = share.ranks * recipe.run.accumulate
    if data.batch_size % parts:
        raise RecipeError(
            f"data.batch_size: {data.batch_size} cannot be cut into {parts} equal parts "
            f"({share.ranks} devices, run.accumulate {recipe.run.accumulate})"
        )
    if data.noisy and data.clean and not data.noise:
        return _recorded(recipe, share)
    if data.clean and data.noise and not data.noisy:
        return _mixed(recipe, device, share)
    raise RecipeError(
        "data: give clean speech and noise to mix (--clean DIR --noise DIR), or pairs (--noisy DIR --clean DIR)"
    )


def _mixed(recipe: Recipe, device: torch.device, share: Share) -> Sources:
    data, run = recipe.data, recipe.run
    length = round(data.seconds * SAMPLE_RATE)
    broken: list[str] = []
    speech, noise = (_load(paths, broken) for paths in (data.clean, data.noise))
    rooms = _load(data.rir, broken) if data.rir else None
    parts = f"{speech.seconds / 60:.1f} min of speech, {noise.seconds / 60:.1f} min of noise"
    if device.type != "cpu" and speech.bytes + noise.bytes < _free_bytes(device) // 2:
        speech, noise = speech.to(device), noise.to(device)
    description = f"{parts}, {len(rooms) if rooms else 0} rooms, mixed on the fly ({speech.device.type})"
    validation, warnings = _given_validation(data)
    if not validation:
        (speech, held_speech), (noise, held_noise) = speech.split(_HELD_OUT), noise.split(_HELD_OUT)
        held = Mixer(recipe.mixing, held_speech, held_noise, rooms, length, seed=data.seed + 1)
        sides = (side.cpu().numpy() for side in held.pairs(range(run.validation_pairs)))
        validation = list(zip(*sides, strict=True))
    mixer = Mixer(recipe.mixing, speech, noise, rooms, length, data.seed)
    feed = MixFeed(mixer, data.batch_size, run.steps_per_epoch, share)
    return Sources(feed, validation, description, broken + warnings)


def _load(paths: Sequence[str], warnings: list[str]) -> Corpus:
    return Corpus.load([Path(path) for path in paths], SAMPLE_RATE, warnings)


def _free_bytes(device: torch.device) -> int:
    """Of the device's own memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _recorded(recipe: Recipe, share: Share) -> Sources:
    data = recipe.data
    if len(data.clean) != 1:
        raise RecipeError("data.clean: pairs take one folder of clean recordings")
    broken: list[str] = []
    pairs = match_pairs(Path(data.noisy), Path(data.clean[0]), broken)
    validation, warnings = _given_validation(data)
    if not validation:
        held = pairs[:: max(_HELD_OUT, len(pairs) // recipe.run.validation_pairs)]
        pairs = [pair for pair in pairs if pair not in held] or pairs
        validation, warnings = _load_validation(held)
    warnings += check_pairs(pairs)
    length = round(data.seconds * SAMPLE_RATE)
    feed = PairFeed(pairs, data.batch_size, length, SAMPLE_RATE, data.seed, share)
    return Sources(feed, validation, f"{len(pairs)} pairs", broken + warnings)


def _given_validation(data: DataConfig) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    if bool(data.valid_noisy) != bool(data.valid_clean):
        raise RecipeError("data: valid_noisy and valid_clean go together")
    if not data.valid_noisy:
        return [], []
    pairs = match_pairs(Path(data.valid_noisy), Path(data.valid_clean))
    warnings = check_pairs(pairs)
    return _load_validation(pairs)[0], warnings


def _load_validation(pairs: Sequence[Pair]) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    limit = round(_LONGEST * SAMPLE_RATE)
    loaded = [load_pair(pair, SAMPLE_RATE) for pair in pairs]
    return [(noisy[:limit], clean[:limit]) for noisy, clean, _ in loaded], [w for *_, ws in loaded for w in ws]


def check_pairs(pairs: Sequence[Pair]) -> list[str]:
    """Warnings of up to 64 pairs, evenly spaced. Raises ``PairError`` for a pair that is misaligned, and for a noisy
    baseline that no recording has: two starts drawn for one pair look like a very hard corpus otherwise."""
    warnings: list[str] = []
    values = []
    for pair in pairs[:: max(1, len(pairs) // _CHECKED_PAIRS)]:
        noisy, clean, remarks = load_pair(pair, SAMPLE_RATE)
        warnings += remarks
        try:
            values.append(si_sdr(noisy, clean))
        except MetricError:
            continue  # a silent side: noise alone is fit for training
    if values and float(np.mean(np.maximum(values, -100.0))) < _IMPLAUSIBLE_DB:
        raise PairError(
            f"the noisy side of {pairs[0].noisy} and others has an SI-SDR of {np.mean(values):.1f} dB on average: "
            "noisy and clean files do not belong together, or are not aligned"
        )
    return warnings
