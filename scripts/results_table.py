"""Results of ``fastenh evaluate --out`` as a Markdown table, a row a system.

python scripts/results_table.py RESULTS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastenh.evaluate.metrics import DIGITS, LABELS
from fastenh.models import checkpoint
from fastenh.models.registry import count_parameters


def markdown(results: dict[str, Any], names: Mapping[str, str] = MappingProxyType({})) -> str:
    """Mean and 95 % interval of each metric, the difference to the noisy input and on how many files it is positive.

    names: of systems, where they shall not go by their own.
    """
    metrics = [metric for metric in LABELS if metric in next(iter(results["systems"].values()))]
    heads = [LABELS[m] + {"pesq": " (wide band)", "si_sdr": " (dB)"}.get(m, "") for m in metrics]
    lines = ["| " + " | ".join(["", "parameters", *heads, "RTF"]) + " |", "|---" * (len(metrics) + 3) + "|"]
    for label, record in results["systems"].items():
        factor = record["real_time_factor"]
        speed = "" if factor is None else f"{factor:.2f}"
        cells = [
            names.get(label) or _name(label),
            _parameters(label),
            *(_cell(record[m], DIGITS[m]) for m in metrics),
            speed,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: dict[str, Any], digits: int) -> str:
    if "mean" not in values:
        return "no value"
    text = f"{values['mean']:.{digits}f} [{values['low']:.{digits}f}, {values['high']:.{digits}f}]"
    change = values["difference"].get("mean")
    return f"{text}, {change:+.{digits}f} ({values['share_better']:.0%})" if change else text


def _name(label: str) -> str:
    return Path(label).stem if label.endswith(checkpoint.SUFFIX) else label


def _parameters(label: str) -> str:
    if label not in checkpoint.shipped_models() and not (Path(label).is_file() and label.endswith(checkpoint.SUFFIX)):
        return ""
    return f"{count_parameters(checkpoint.load(label)[0]):,}"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
