"""What it takes to enhance many hours of audio: python scripts/cost.py --hours 1e6 --cores 1000

Machine hours, days, bytes, requests and money, on processors and on GPUs, from figures that are yours to give: how fast
a core or a GPU is (docs/cluster.md says how to measure it), what your provider asks for, what your recordings are like.
The defaults are what was measured for dpt_complex where that was done, and round numbers in place of prices, which are
nobody's offer.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

# requests of a store for a file: listed apart, since they are priced apart
READS = 7  # the file, and what is asked about it and its output before and after
WRITES = 6  # claim, temporary key, its copy to the final key, entry of the manifest; two listings cost as much


@dataclass(frozen=True)
class Figures:
    """What the reader may change; each is an option of the same name."""

    hours: float = 1e6  # of audio
    minutes_per_file: float = 6.0
    kilobytes_per_second: float = 32.0  # of a recording: 16 kHz, one channel, 16 bit
    core_seconds: float = 0.0247  # of one core for a second of audio, all of a job: 20 minutes in 14.8 s on two cores
    cores: float = 1000
    core_hour: float = 0.04  # in the currency of the reader, as all prices
    gpu_times_real_time: float = 22_500  # of the model alone: windows that deliver 3.58 s in 159 us (docs/speed.md)
    feeding_seconds: float = 0.0033  # of one core: all but the model (44.1 kHz FLAC; 16 kHz: 0.0013)
    cores_per_gpu: float = 16
    gpus: float = 8
    gpu_hour: float = 4.0  # with its cores
    terabyte_month: float = 23.0
    months: float = 1.0  # that inputs and outputs are kept
    million_reads: float = 0.4
    million_writes: float = 5.0


@dataclass(frozen=True)
class Reckoned:
    core_hours: float
    core_days: float  # of wall clock, on all cores
    core_price: float
    gpu_speed: float  # x real time of one GPU with its cores
    limit: str  # what a GPU waits for
    gpu_hours: float
    gpu_days: float
    gpu_price: float
    terabytes: float  # read, and as much is written
    gigabits: float  # a second, in and out together, on the cores
    gigabits_gpu: float
    files: float
    requests_price: float
    storage_price: float


def reckon(f: Figures) -> Reckoned:
    core_hours = f.hours * f.core_seconds
    fed = f.cores_per_gpu / f.feeding_seconds
    speed = min(f.gpu_times_real_time, fed)
    gpu_hours = f.hours / speed
    terabytes = f.hours * 3600 * f.kilobytes_per_second / 1e9
    files = f.hours * 60 / f.minutes_per_file
    moved = 2 * terabytes * 8e3 / 3600  # gigabits, were it in an hour
    return Reckoned(
        core_hours=core_hours,
        core_days=core_hours / f.cores / 24,
        core_price=core_hours * f.core_hour,
        gpu_speed=speed,
        limit="the GPU" if speed < fed else f"the {f.cores_per_gpu:g} cores that read and write for it",
        gpu_hours=gpu_hours,
        gpu_days=gpu_hours / f.gpus / 24,
        gpu_price=gpu_hours * f.gpu_hour,
        terabytes=terabytes,
        gigabits=moved / (core_hours / f.cores),
        gigabits_gpu=moved / (gpu_hours / f.gpus),
        files=files,
        requests_price=files / 1e6 * (READS * f.million_reads + WRITES * f.million_writes),
        storage_price=2 * terabytes * f.terabyte_month * f.months,
    )


def table(f: Figures) -> str:
    r = reckon(f)
    rows = [
        ("audio", f"{f.hours:,.0f} h in {r.files:,.0f} files, {r.terabytes:,.1f} TB to read and as much to write"),
        ("processors", f"{r.core_hours:,.0f} core hours; {r.core_days:,.1f} days on {f.cores:,.0f} cores"),
        ("", f"{r.core_price:,.0f} at {f.core_hour:g} a core hour; {r.gigabits:,.1f} Gbit/s in and out"),
        ("GPUs, estimated", f"{r.gpu_speed:,.0f} x real time each, limited by {r.limit}"),
        ("", f"{r.gpu_hours:,.0f} GPU hours; {r.gpu_days:,.1f} days on {f.gpus:,.0f} GPUs"),
        ("", f"{r.gpu_price:,.0f} at {f.gpu_hour:g} a GPU hour; {r.gigabits_gpu:,.1f} Gbit/s in and out"),
        ("requests", f"{r.requests_price:,.0f} for {READS} reads and {WRITES} writes a file"),
        ("storage", f"{r.storage_price:,.0f} for inputs and outputs over {f.months:g} months"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {words} |" for name, words in rows)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for field in fields(Figures):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default, help=" ")
    print(table(Figures(**vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
