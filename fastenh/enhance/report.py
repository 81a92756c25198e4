"""What a job did, in numbers: the summary and the JSON report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fastenh
from fastenh.atomic import replacing
from fastenh.enhance.work import Result
from fastenh.remote import is_remote, make_folder


@dataclass(frozen=True)
class Summary:
    enhanced: int
    again: int  # of these: made before from another input or with other settings
    skipped: int
    failed: int
    audio_seconds: float
    elapsed_seconds: float  # of the whole job
    planned: int = 0  # files that would be enhanced, if this is a dry run
    warned: int = 0  # files with a warning
    passed_over: dict[str, int] = field(default_factory=dict)  # files of kinds that nothing here reads, by ending

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work for a second of audio."""
        return self.elapsed_seconds / self.audio_seconds if self.audio_seconds else None


def summarise(
    results: Sequence[Result], elapsed_seconds: float, passed_over: Mapping[str, int] = MappingProxyType({})
) -> Summary:
    done = [result for result in results if result.status == "enhanced"]
    return Summary(
        enhanced=len(done),
        again=sum(bool(result.again) for result in results),
        skipped=sum(result.status == "skipped" for result in results),
        failed=sum(result.status == "failed" for result in results),
        audio_seconds=sum(result.audio_seconds for result in done),
        elapsed_seconds=elapsed_seconds,
        planned=sum(result.status == "planned" for result in results),
        warned=sum(bool(result.warnings) for result in results),
        passed_over=dict(sorted(passed_over.items())),
    )


def write_report(path: Path, results: Sequence[Result], summary: Summary, settings: dict[str, Any]) -> None:
    """Write one JSON object: ``fastenh`` (version), ``settings``, ``summary`` and ``files`` (docs/report.md).

    A name that is no UTF-8 is written as JSON writes such characters (``\\udce9``): who reads it gets the name back.
    """
    report = {
        "fastenh": fastenh.__version__,
        "settings": settings,
        "summary": {**dataclasses.asdict(summary), "real_time_factor": summary.real_time_factor},
        "files": [_record(result) for result in results],
    }
    make_folder(path.parent)
    text = json.dumps(report, indent=2, default=str, ensure_ascii=False) + "\n"
    is_device = not is_remote(path) and (path.parent == Path("/dev") or (path.exists() and not path.is_file()))
    with nullcontext(path) if is_device else replacing(path) as written:
        written.write_bytes(text.encode("utf-8", "backslashreplace"))


def _record(result: Result) -> dict[str, Any]:
    speed = result.audio_seconds / result.elapsed_seconds if result.elapsed_seconds else 0.0
    return {**dataclasses.asdict(result), "times_real_time": round(speed, 2)}
