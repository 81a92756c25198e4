"""The results of a job in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import takewhile

from fastenh.audio.listing import advice
from fastenh.cli.terminal import Terminal
from fastenh.enhance.report import Summary
from fastenh.enhance.work import Result


def show(result: Result, errors: Terminal, console: Terminal, verbose: bool) -> None:
    if result.status == "failed":
        errors.print(f"error: {result.error}")
    elif verbose:
        speed = f", {result.audio_seconds:.1f} s of audio in {result.elapsed_seconds:.2f} s"
        done = (f" again ({result.again})" if result.again else "") + (speed if result.status == "enhanced" else "")
        console.print(f"{result.source} -> {result.target}: {result.status}{done}")
    for warning in result.warnings:
        console.print(f"warning: {result.source}: {warning}")


def summed_up(summary: Summary, results: list[Result]) -> str:
    parts = [f"{summary.planned} files to be enhanced" if summary.planned else f"{summary.enhanced} files enhanced"]
    if summary.again:
        parts[0] += f" ({summary.again} again: input or settings changed)"
    if summary.skipped:
        parts.append(f"{summary.skipped} skipped (the output exists; --overwrite replaces it)")
    if summary.failed:
        parts.append(f"{summary.failed} failed")
    if summary.warned:
        parts.append(f"{summary.warned} with warnings")
    if summary.real_time_factor:
        minutes, seconds = divmod(summary.audio_seconds, 60)
        factor = summary.real_time_factor
        parts.append(f"{int(minutes)}:{seconds:04.1f} of audio")
        parts.append(f"real-time factor {factor:.3f} ({1 / factor:.1f}x)")
    targets = [str(result.target.parent) for result in results if result.target is not None]
    where = f" -> {common_folder(targets)}" if targets else ""
    return ", ".join(parts) + where + passed_over(summary.passed_over)


def common_folder(folders: list[str]) -> str:
    if not any("://" in folder for folder in folders):
        return os.path.commonpath(folders)
    parts = zip(*(folder.split("/") for folder in folders), strict=False)
    return "/".join(same[0] for same in takewhile(lambda same: len(set(same)) == 1, parts))


def passed_over(counts: Mapping[str, int]) -> str:
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))
    return f"; passed over: {kinds} ({advice(counts)})" if kinds else ""
