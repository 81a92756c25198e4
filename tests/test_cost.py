"""The arithmetic of many hours: round figures whose results are known."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import cost

ROUND = {
    "hours": 2400, "minutes_per_file": 6, "kilobytes_per_second": 100, "core_seconds": 0.1, "cores": 10,
    "core_hour": 0.5, "gpu_times_real_time": 1000, "feeding_seconds": 0.01, "cores_per_gpu": 20, "gpus": 2,
    "gpu_hour": 3, "terabyte_month": 20, "months": 2, "million_reads": 1, "million_writes": 10,
}  # fmt: skip


def test_by_hand():
    found = cost.reckon(cost.Figures(**ROUND))
    assert found.core_hours == pytest.approx(240)
    assert found.core_days == pytest.approx(1)
    assert found.core_price == pytest.approx(120)
    assert (found.gpu_speed, found.limit) == (1000, "the GPU")
    assert found.gpu_hours == pytest.approx(2.4)
    assert found.gpu_days == pytest.approx(0.05)
    assert found.gpu_price == pytest.approx(7.2)
    assert found.terabytes == pytest.approx(0.864)
    assert found.gigabits == pytest.approx(0.16)  # 2 x 864 GB in a day
    assert found.gigabits_gpu == pytest.approx(3.2)
    assert found.files == pytest.approx(24_000)
    assert found.requests_price == pytest.approx(0.024 * (cost.READS + 10 * cost.WRITES))
    assert found.storage_price == pytest.approx(69.12)


def test_few_cores_starve_a_gpu():
    found = cost.reckon(cost.Figures(**ROUND | {"cores_per_gpu": 2}))
    assert found.gpu_speed == pytest.approx(200)
    assert found.limit == "the 2 cores that read and write for it"
    assert found.gpu_hours == pytest.approx(12)


def test_the_options_are_the_figures(capsys):
    cost.main([part for name, value in ROUND.items() for part in (f"--{name.replace('_', '-')}", str(value))])
    assert capsys.readouterr().out.strip() == cost.table(cost.Figures(**ROUND))
