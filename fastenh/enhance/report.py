"""What a job did, in numbers: the summary and the JSON report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastenh
from fastenh.enhance.job import Result


@dataclass(frozen=True)
class Summary:
    enhanced: int
    again: int  # of these: made before from another input or with other settings
    skipped: int
    failed: int
    audio_seconds: float
    elapsed_seconds: float  # of the whole job
    planned: int = 0  # files that would be enhanced, if this is a dry run

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work for a second of audio."""
        return self.elapsed_seconds / self.audio_seconds if self.audio_seconds else None


def summarise(results: Sequence[Result], elapsed_seconds: float) -> Summary:
    done = [result for result in results if result.status == "enhanced"]
    return Summary(
        enhanced=len(done),
        again=sum(bool(result.again) for result in results),
        skipped=sum(result.status == "skipped" for result in results),
        failed=sum(result.status == "failed" for result in results),
        audio_seconds=sum(result.audio_seconds for result in done),
        elapsed_seconds=elapsed_seconds,
        planned=sum(result.status == "planned" for result in results),
    )


def write_report(path: Path, results: Sequence[Result], summary: Summary, settings: dict[str, Any]) -> None:
    """One JSON object: ``fastenh`` (version), ``settings``, ``summary`` and ``files`` (docs/report.md)."""
    report = {
        "fastenh": fastenh.__version__,
        "settings": settings,
        "summary": {**dataclasses.asdict(summary), "real_time_factor": summary.real_time_factor},
        "files": [_record(result) for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")


def _record(result: Result) -> dict[str, Any]:
    speed = result.audio_seconds / result.elapsed_seconds if result.elapsed_seconds else 0.0
    return {**dataclasses.asdict(result), "times_real_time": round(speed, 2)}
