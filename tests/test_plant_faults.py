"""Faults planted in a tiny repository: one is noticed, one lives, one entry no longer matches."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from plant_faults import main, read_faults, select

SOURCE = """def double(x):
    return 2 * x


def half(x):
    return x / 2
"""
TEST = """from numbers_of_ours import double


def test_double():
    assert double(3) == 6
"""
NOTICED = """
[[fault]]
name = "double triples"
file = "numbers_of_ours.py"
old = "2 * x"
new = "3 * x"
tests = ["tests/test_numbers.py"]
"""
LIVING = NOTICED.replace("double triples", "half is a third").replace("2 * x", "x / 2").replace("3 * x", "x / 3")
STALE = NOTICED.replace("double triples", "double adds").replace("2 * x", "x + x")
UNTESTED = NOTICED.replace("double triples", "nobody looks").replace("test_numbers", "test_gone")
TWICE = NOTICED.replace("double triples", "twice there").replace("2 * x", "return")


@pytest.fixture
def repository(tmp_path):
    """Its test passes; the list of faults is that of the test."""
    for name, text in {"numbers_of_ours.py": SOURCE, "tests/test_numbers.py": TEST, ".gitignore": "ignored"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "scripts").mkdir()
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)

    def with_faults(*faults):
        (tmp_path / "scripts" / "faults.toml").write_text("".join(faults))
        return tmp_path

    return with_faults


def plant(repository, *options):
    return main(["--repository", str(repository), *options])


def test_each_outcome_has_its_line(repository, capfd):
    root = repository(NOTICED, LIVING, STALE, UNTESTED, TWICE)
    assert plant(root) == 1
    assert capfd.readouterr().out.splitlines() == [
        "  1 double triples: noticed by tests/test_numbers.py::test_double",
        "  2 half is a third: LIVES",
        "  3 double adds: NO LONGER MATCHES: the old text occurs 0 times in numbers_of_ours.py",
        "  4 nobody looks: NO LONGER MATCHES: there is no tests/test_gone.py",
        "  5 twice there: NO LONGER MATCHES: the old text occurs 2 times in numbers_of_ours.py",
        "5 faults, 1 live, 3 entries no longer match",
    ]
    assert (root / "numbers_of_ours.py").read_text() == SOURCE


def test_one_of_them_and_the_exit_code(repository, capfd):
    root = repository(LIVING, NOTICED)
    assert plant(root, "--only", "triples") == 0
    with pytest.raises(SystemExit, match="no fault 'nonsense'"):
        plant(root, "--only", "nonsense")
    assert "1 faults, 0 live" in capfd.readouterr().out


def test_a_test_that_always_fails_notices_nothing(repository, capfd):
    root = repository(NOTICED)
    (root / "tests" / "test_numbers.py").write_text(TEST.replace("6", "7"))
    assert plant(root) == 1
    assert "test_double fails without any fault, too" in capfd.readouterr().out


def test_the_list_matches_the_source():
    """Of the repository itself; that each fault is noticed takes minutes, and the script to say."""
    root = Path(__file__).resolve().parent.parent
    faults = read_faults(root / "scripts" / "faults.toml")
    assert len(faults) >= 40
    assert len({fault.name for fault in faults}) == len(faults)
    for fault in faults:
        compile(fault.planted((root / fault.file).read_text(encoding="utf-8")), fault.file, "exec")
    assert [fault.number for fault in select(faults, "7")] == [7]
