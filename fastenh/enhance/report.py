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
    elapsed_seconds: float  # spent on the enhanced files: reading, model and writing

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work for a second of audio."""
        return self.elapsed_seconds / self.audio_seconds if self.audio_seconds else None


def summarise(results: Sequence[Result]) -> Summary:
    done = [result for result in results if result.status == "enhanced"]
    return Summary(
        enhanced=len(done),
        again=sum(bool(result.again) for result in done),
        skipped=sum(result.status == "skipped" for result in results),
        failed=sum(result.status == "failed" for result in results),
        audio_seconds=sum(result.audio_seconds for result in done),
        elapsed_seconds=sum(result.elapsed_seconds for result in done),
    )


def write_report(path: Path, results: Sequence[Result], settings: dict[str, Any]) -> None:
    """One JSON object: ``fastenh`` (version), ``settings``, ``summary`` and ``files``, a record each."""
    summary = summarise(results)
    report = {
        "fastenh": fastenh.__version__,
        "settings": settings,
        "summary": {**dataclasses.asdict(summary), "real_time_factor": summary.real_time_factor},
        "files": [dataclasses.asdict(result) for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
