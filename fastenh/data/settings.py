"""Kinds of numbers in the settings of a recipe; pydantic checks them (``train/recipe.py``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("must be a range, the smaller number first")
    return value


def _as_tuple(value: object) -> object:
    """A name alone stands for a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(ge=1, le=10**12)]
CountOrNone = Annotated[int, Field(ge=0, le=10**12)]  # 0 switches off what it counts
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Decibels = Annotated[float, Field(ge=-120, le=120, allow_inf_nan=False)]
DecibelRange = Annotated[tuple[Decibels, Decibels], AfterValidator(_ascending)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
