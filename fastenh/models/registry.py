"""The models by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastenh.errors import UsageError
from fastenh.models.crn import CRN, CRNConfig
from fastenh.models.dpt import DPT, DPTConfig
from fastenh.models.dpt_complex import DPTComplex, DPTComplexConfig
from fastenh.models.frontend import BINS, SAMPLE_RATE, SpectralModel
from fastenh.models.transformers import MelTransformer, MelTransformerConfig, STFTTransformer, STFTTransformerConfig


class ModelError(UsageError, ValueError):
    """A model that does not exist, or a configuration that it does not take."""


@dataclass(frozen=True)
class Entry:
    config: type
    core: type[nn.Module]
    description: str


DEFAULT = "dpt_complex"  # what enhances unless another is asked for

MODELS = {
    "dpt_complex": Entry(DPTComplexConfig, DPTComplex, "narrow dual path, complex mask of a compressed spectrum"),
    "dpt": Entry(DPTConfig, DPT, "dual-path transformer: attention over bands, then over frames"),
    "crn": Entry(CRNConfig, CRN, "convolutions along frequency, LSTM over time"),
    "mel_transformer": Entry(MelTransformerConfig, MelTransformer, "transformer over time on 128 mel bands"),
    "stft_transformer": Entry(
        STFTTransformerConfig,
        STFTTransformer,
        "transformer over time on 257 bins, averaged over frequency: a mask nearly constant over bins",
    ),
}


def entry(name: str) -> Entry:
    """Return the entry of a model. Raises ``ModelError``, naming the models there are."""
    if name not in MODELS:
        raise ModelError(f"no model named {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]


def make_config(name: str, values: dict[str, Any]) -> Any:
    """Make the configuration of a model from plain values. Raises ``ModelError`` for a key that it does not have."""
    cls = entry(name).config
    known = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise ModelError(f"model {name} has no setting {key!r}; it has {', '.join(sorted(known))}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def build(name: str, config: Any = None) -> SpectralModel:
    """Build a model with fresh weights: waveform (B, L) at 16 kHz -> (B, L). ``config`` defaults to the model's own."""
    model = entry(name)
    config = model.config() if config is None else config
    return SpectralModel(model.core(config), config.hop, getattr(config, "causal", False))


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def operations_per_second(name: str, seconds: float = 3.0) -> float:
    """Count floating-point operations of the core for one second of audio, counted on a clip of ``seconds``.

    Matrix products, convolutions and attention, a multiply-add as two; no arithmetic runs (meta tensors).
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which enhancing does not need

    model = build(name).eval().to("meta")
    frames = int(seconds * SAMPLE_RATE) // model.frontend.hop
    spectrum = torch.empty(1, BINS, frames, dtype=torch.complex64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.core(spectrum)
    return counter.get_total_flops() / seconds
