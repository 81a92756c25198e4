"""Options that several commands share, and types of options that click does not have."""

from __future__ import annotations

from typing import Any

import click

atten_lim_option = click.option(
    "--atten-lim", type=click.FloatRange(min=0), metavar="DB", help="Turn nothing down by more than this many decibels."
)
vad_option = click.option("--vad", is_flag=True, help="Turn down what is not speech by up to 20 decibels more.")
metric_jobs_option = click.option(
    "--jobs", default=0, type=click.IntRange(min=0), help="Number of processes for the metrics; 0 means one per core."
)


class Shard(click.ParamType):
    """ "i/n" as (i, n)."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        parts = value.split("/") if isinstance(value, str) else value
        if len(parts) != 2 or not all(str(part).isdecimal() for part in parts):
            self.fail(f"{value!r} does not read i/n, as 1/4", param, ctx)
        number, count = map(int, parts)
        if not 1 <= number <= count:
            self.fail(f"{value!r}: the parts are 1/{count} to {count}/{count}", param, ctx)
        return number, count


class BitRate(click.ParamType):
    """ "128k" or "128000" as bit/s."""

    name = "N[k]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        digits = str(value).removesuffix("k")
        bits = int(digits) * (1000 if str(value).endswith("k") else 1) if digits.isdecimal() else 0
        if not 1_000 <= bits <= 10_000_000:
            self.fail(f"{value!r} is no bit rate from 1k to 10000k, as 128k", param, ctx)
        return bits


class BatchSize(click.IntRange):
    """A positive number, or "auto" (None)."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "auto" else super().convert(value, param, ctx)
