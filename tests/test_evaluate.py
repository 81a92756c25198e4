"""Metrics against their formulas, intervals, and the command."""

import csv
import json

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice

from fastenh.audio.files import read_mono
from fastenh.audio.listing import list_audio
from fastenh.cli import main
from fastenh.data.pairs import load_pair
from fastenh.evaluate import comparison, metrics
from fastenh.evaluate.comparison import bootstrap_mean
from fastenh.evaluate.metrics import MetricError
from fastenh.evaluate.rows import Row, Rows

RATE = 16_000


def real_speech():
    return read_mono(next(p for p in list_audio(SAMPLES / "clean") if "english-pink" in p.name), RATE)


def test_si_sdr_is_the_ratio_of_orthogonal_parts():
    clean = np.sin(np.arange(1600) * 2 * np.pi / 16)
    other = np.cos(np.arange(1600) * 2 * np.pi / 16)
    for db in (-10, 0, 25):
        estimate = 3 * (clean + 10 ** (-db / 20) * other)
        assert metrics.si_sdr(estimate, clean) == pytest.approx(db, abs=1e-6)
        assert metrics.si_sdr(estimate + 0.7, clean - 0.2) == pytest.approx(db, abs=1e-6)
    assert metrics.si_sdr(clean, clean) > 100
    for silent in ((np.zeros(10), clean[:10]), (clean[:10], np.zeros(10)), (np.zeros(0), np.zeros(0))):
        with pytest.raises(MetricError, match="silence"):
            metrics.si_sdr(*silent)


def test_pesq_and_stoi_order_noise_levels():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    clean = real_speech()
    quiet, loud = (clean + noise(clean.size, scale=scale) for scale in (0.002, 0.1))
    for metric in (metrics.pesq, metrics.stoi):
        assert metric(quiet, clean) > metric(loud, clean) + 0.1
    assert metrics.stoi(clean, clean) == pytest.approx(1.0)


def test_pesq_and_stoi_are_those_of_the_packages():
    """Wide band, the clean side as the reference: with the sides swapped the values are others."""
    pesq, pystoi = pytest.importorskip("pesq"), pytest.importorskip("pystoi")
    clean = real_speech()
    noisy = clean + noise(clean.size, scale=0.02)
    assert metrics.pesq(noisy, clean) == pytest.approx(pesq.pesq(RATE, clean, noisy, "wb"), abs=1e-6)
    assert metrics.stoi(noisy, clean) == pytest.approx(pystoi.stoi(clean, noisy, RATE), abs=1e-6)


def test_a_failure_is_a_reason_and_never_a_number():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    short = voice(1000)
    values = metrics.score(short, short, ("pesq", "stoi"))
    assert values["pesq"].startswith("PESQ: ")
    assert values["stoi"].startswith("STOI: ")
    assert metrics.score(np.zeros(RATE), np.zeros(RATE), ("si_sdr",)) == {"si_sdr": "silence has no SI-SDR"}


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        interval = bootstrap_mean(list(rng.normal(3.0, 1.0, size=40)), resamples=1000)
        assert interval.low <= interval.mean <= interval.high
        hits += interval.low <= 3.0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99
    assert bootstrap_mean([]) is None
    assert bootstrap_mean([2.0]).low == 2.0


@pytest.fixture
def pairs(tmp_path):
    clean = real_speech()
    for index in range(3):
        for side, samples in (("noisy", clean + noise(clean.size, index, 0.03)), ("clean", clean)):
            (tmp_path / side).mkdir(exist_ok=True)
            soundfile.write(tmp_path / side / f"{index}.wav", samples, RATE)
    (tmp_path / "perfect").mkdir()
    for index in range(3):
        soundfile.write(tmp_path / "perfect" / f"{index}.flac", clean + noise(clean.size, index, 0.0001), RATE)
    return tmp_path


def call(*arguments, code=0):
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_command_compares_models_and_files(pairs, tiny_checkpoint):
    out, table = pairs / "results.json", pairs / "files.csv"
    output = call(
        pairs / "noisy", pairs / "clean", "--model", tiny_checkpoint, "--enhanced", pairs / "perfect", "--out", out,
        "--csv", table, "--jobs", 1,
    )  # fmt: skip
    assert "3 pairs" in output
    assert "100%" in output
    systems = json.loads(out.read_text())["systems"]
    assert list(systems) == ["noisy", str(tiny_checkpoint), "perfect"]
    assert systems["perfect"]["si_sdr"]["difference"]["mean"] > 20
    assert systems["perfect"]["si_sdr"]["share_better"] == 1.0
    assert systems["perfect"]["real_time_factor"] is None
    assert systems[str(tiny_checkpoint)]["real_time_factor"] > 0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 9
    values = [float(row["si_sdr"]) for row in rows if row["system"] == "noisy"]
    assert np.mean(values) == pytest.approx(systems["noisy"]["si_sdr"]["mean"], abs=1e-4)


def test_a_comparison_that_was_stopped_goes_on(pairs, tiny_checkpoint, monkeypatch):
    """What was done is not done again, and the results are those of one run; what has changed is done again."""
    command = [pairs / "noisy", pairs / "clean", "--model", tiny_checkpoint, "--jobs", 1]
    whole, out, part = pairs / "whole.json", pairs / "out.json", pairs / "out.json.part"
    monkeypatch.setattr(metrics, "available", lambda: ("si_sdr",))  # quick
    call(*command, "--out", whole)
    monkeypatch.setattr(comparison, "_CHUNK", 1)
    loaded, stop = [], ["2"]

    def load(pair, rate):
        if pair.name in stop:
            raise KeyboardInterrupt
        loaded.append(pair.name)
        return load_pair(pair, rate)

    monkeypatch.setattr(comparison, "load_pair", load)
    assert "stopped; give the same command again to resume" in call(*command, "--out", out, code=1)
    assert not out.exists()
    assert len(part.read_text().splitlines()) == 1 + 2
    part.write_text(part.read_text() + '{"pair": "2", "val')  # cut short while writing
    (pairs / "clean" / "1.wav").touch()
    stop.clear()
    assert "resuming: 2 of 3 pairs are done" in call(*command, "--out", out)
    assert loaded == ["0", "1", "1", "2"]
    assert not part.exists()
    for name, system in json.loads(whole.read_text())["systems"].items():
        again = json.loads(out.read_text())["systems"][name]
        assert again["si_sdr"] == system["si_sdr"]


def test_what_was_done_with_other_settings_is_not_taken(pairs, tmp_path):
    rows = Rows(tmp_path / "x.part", {"a": 1})
    rows.add([Row("0", [], 1.0, [])])
    assert len(Rows(tmp_path / "x.part", {"a": 1})) == 1
    assert Rows(tmp_path / "x.part", {"a": 1}).of("0", [2]) is None
    assert len(Rows(tmp_path / "x.part", {"a": 2})) == 0
    for damage in ("", "[]\n", '{"a": 1}\n{"pair": "0"}\n', '{"a": 1}\n3\n', "\x00"):
        (tmp_path / "x.part").write_text(damage)
        assert len(Rows(tmp_path / "x.part", {"a": 1})) == 0


def test_command_counts_failures(pairs):
    silent = np.zeros(RATE)
    for side in ("noisy", "clean"):
        soundfile.write(pairs / side / "silent.wav", silent, RATE)
    output = call(pairs / "noisy", pairs / "clean", "--jobs", 1)
    assert "values could not be computed" in output
    assert "silent: silence has no SI-SDR" in output


def test_command_without_the_extra(pairs, monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    output = call(pairs / "noisy", pairs / "clean", "--jobs", 1)
    assert "SI-SDR" in output
    assert "PESQ and STOI need an extra: pip install 'fastenh[metrics]'" in output


def test_command_errors(pairs, tmp_path):
    assert "no such file" in call(tmp_path / "gone", pairs / "clean", code=1)
    (pairs / "perfect" / "1.flac").unlink()
    output = call(pairs / "noisy", pairs / "clean", "--enhanced", pairs / "perfect", code=1)
    assert "no enhanced file named 1" in output.replace("\n", " ")
