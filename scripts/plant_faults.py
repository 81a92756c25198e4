"""Plants faults, one at a time, in a copy of the repository, and says which of them no test notices.

    python scripts/plant_faults.py [--only NUMBER_OR_WORD] [--repository DIR]

The faults are in scripts/faults.toml: a name, a file, the old text (which must occur there exactly once), the new text,
and the test files that should notice. A line for each fault names the test that failed, or says LIVES. The exit code is
1 where a fault lives, an entry no longer matches the source, or a test that noticed one fails without any fault, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LIST = "scripts/faults.toml"
_PATIENCE = 900  # seconds for the tests of one fault: one that makes a loop endless is noticed, too
_ENDLESS = f"no end after {_PATIENCE} s"
_PASSED, _FAILED, _INTERRUPTED = 0, 1, 2  # exit codes of pytest; with the last, a test file could not be imported


class FaultError(Exception):
    """An entry of the list, or the tests it names, that cannot be used."""


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    number: int  # its place in the list, from 1 on

    def planted(self, source: str) -> str:
        """The source with the fault in it. Raises ``FaultError`` where the old text is not there exactly once."""
        count = source.count(self.old)
        if count != 1:
            raise FaultError(f"the old text occurs {count} times in {self.file}")
        return source.replace(self.old, self.new)


def read_faults(path: Path) -> list[Fault]:
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    return [Fault(**entry | {"tests": tuple(entry["tests"])}, number=n) for n, entry in enumerate(entries, 1)]


def select(faults: Sequence[Fault], wanted: str) -> list[Fault]:
    """The fault of that number, or those with that word in their name or file."""
    if wanted.isdecimal():
        return [fault for fault in faults if fault.number == int(wanted)]
    return [fault for fault in faults if wanted.lower() in f"{fault.name} {fault.file}".lower()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NUMBER_OR_WORD", help="this fault, or those with this word")
    parser.add_argument("--repository", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args(arguments)
    faults = select(read_faults(options.repository / _LIST), options.only)
    if not faults:
        sys.exit(f"no fault {options.only!r} in {_LIST}")
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        copy = Path(temporary) / "repository"
        copy_repository(options.repository, copy)
        return report(copy, faults)


def copy_repository(repository: Path, copy: Path) -> None:
    """What git tracks and what it would not ignore, as it is in the working tree."""
    command = ["git", "-C", str(repository), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\0")):
        if (repository / name).is_file():  # a file that was removed is tracked until the next commit
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, copy / name)


def report(copy: Path, faults: Sequence[Fault]) -> int:
    """A line for each fault and one for all; the exit code."""
    living = stale = 0
    blamed: set[str] = set()
    for fault in faults:
        try:
            noticed_by = judge(copy, fault)
            outcome = "LIVES" if noticed_by is None else f"noticed by {noticed_by}"
            living += noticed_by is None
            blamed |= {noticed_by} - {None, _ENDLESS}
        except FaultError as error:
            outcome = f"NO LONGER MATCHES: {error}"
            stale += 1
        print(f"{fault.number:3} {fault.name}: {outcome}", flush=True)
    print(f"{len(faults)} faults, {living} live" + (f", {stale} entries no longer match" if stale else ""))
    false_alarm = run_tests(copy, sorted(blamed)) if blamed else None
    if false_alarm is not None:
        print(f"{false_alarm} fails without any fault, too: what it noticed means nothing")
    return int(living + stale > 0 or false_alarm is not None)


def judge(copy: Path, fault: Fault) -> str | None:
    """The test that notices the fault. Raises ``FaultError`` for an entry that no longer matches."""
    for name in (fault.file, *fault.tests):
        if not (copy / name).exists():
            raise FaultError(f"there is no {name}")
    with planted(copy / fault.file, fault):
        return run_tests(copy, fault.tests)


@contextmanager
def planted(path: Path, fault: Fault) -> Iterator[None]:
    source = path.read_text(encoding="utf-8")
    path.write_text(fault.planted(source), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(source, encoding="utf-8")


def run_tests(copy: Path, tests: Sequence[str]) -> str | None:
    """The first test that fails; nothing where all pass. Raises ``FaultError`` where pytest cannot run them."""
    paths = [str(copy), str(copy / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",  # a fault of the same size and second would be run from the old bytecode
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # loading those that are installed takes a second a fault
        "COLUMNS": "200",  # the name of the test that failed is not cut
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=_PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _ENDLESS
    if done.returncode == _PASSED:
        return None
    if done.returncode not in (_FAILED, _INTERRUPTED):
        raise FaultError(f"pytest ended with code {done.returncode}: {done.stdout.strip()[-300:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" ", 1)[1].split(" - ")[0] if lines else f"pytest, with exit code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
