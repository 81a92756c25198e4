"""The forms a model can take (PyTorch or ONNX, float32 or fewer bits) beside each other, as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping

from fastenh.evaluate.comparison import NOISY, Comparison
from fastenh.evaluate.metrics import DIGITS, LABELS


def forms_table(comparison: Comparison, sizes: Mapping[str, int]) -> str:
    """Make a table, one row for the noisy input and for each form: means, real-time factor, size (from bytes) in MB."""
    heads = [LABELS[metric] + (" (dB)" if metric == "si_sdr" else "") for metric in comparison.metrics]
    lines = ["| " + " | ".join(["", *heads, "real-time factor", "MB"]) + " |", "|---" * (len(heads) + 3) + "|"]
    for system in comparison.systems:
        means = [comparison.mean(system, metric) for metric in comparison.metrics]
        cells = [
            f"{mean.mean:.{DIGITS[metric]}f}" if mean else "no value"
            for metric, mean in zip(comparison.metrics, means, strict=True)
        ]
        noisy = system.name == NOISY
        speed = "" if noisy or system.real_time_factor is None else f"{system.real_time_factor:.3f}"
        size = "" if noisy else f"{sizes[system.name] / 1e6:.2f}"
        lines.append("| " + " | ".join([system.name, *cells, speed, size]) + " |")
    return "\n".join(lines)
