"""README and docs: what they tell a reader to run runs, and the site is built without a warning.

A block of commands (```sh) or of Python runs in a copy of the samples, after those before it on its page. What cannot
run there says so in its first line: "# needs ...".
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("av")

from media_files import make

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LONGEST_README = 120
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"], "text": None}


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    text: str

    @property
    def needs(self) -> str:
        """What it cannot run without, in words; nothing for a block that runs."""
        found = re.match(r"# needs (.+)\n", self.text)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    return [Block(page, *found) for found in _FENCE.findall(page.read_text(encoding="utf-8"))]


BLOCKS = {page: [b for b in blocks(page) if b.language != "text"] for page in PAGES}
RUN = {page.name: [b for b in found if not b.needs] for page, found in BLOCKS.items()}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_its_language(page):
    assert {block.language for block in blocks(page)} <= _LANGUAGES.keys()


def test_the_number_of_blocks_that_run_and_of_those_that_cannot():
    """Written down, so that a block that no longer runs is seen."""
    counts = Counter(bool(block.needs) for found in BLOCKS.values() for block in found)
    assert (counts[False], counts[True]) == (20, 24)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    made = {"reference.md", *(f"models/{card.name}" for card in (ROOT / "fastenh" / "weights").glob("*.md"))}
    for address in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert address in made or (page.parent / address).exists(), address


@pytest.fixture
def desk(tmp_path):
    """A folder with the samples, the recordings that the pages speak of, and ``fastenh`` on the path."""
    for name in ("samples", "examples", "scripts", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for folder in ("recordings/monday", "a", "b", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("talk.wav", "noisy.wav", "recordings/monday/1.wav", "a/1.wav"):
        shutil.copy(ROOT / "samples" / "french-hum.wav", tmp_path / name)
    _compressed(tmp_path)
    for command, module in (("fastenh", "-m fastenh"), ("python", "")):
        path = tmp_path / "bin" / command
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        path.chmod(0o755)
    return tmp_path


def _compressed(folder: Path) -> None:
    samples, rate = soundfile.read(ROOT / "samples" / "french-hum.wav", dtype="float32")
    soundfile.write(folder / "c.mp3", samples, rate)
    soundfile.write(folder / "b" / "2.ogg", samples, rate)
    make(folder / "film.mkv", "matroska", "libopus", tracks=2)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page.name]], ids=lambda page: page.name)
def test_what_the_page_says_runs(page, desk):
    environment = dict(os.environ, PATH=f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment.pop("TRITON_INTERPRET", None)  # set for these tests, and by no reader
    for block in RUN[page.name]:
        command = [*_LANGUAGES[block.language], block.text]
        done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra docs)")
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_outside(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'src="https?:|<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="https?:', text)
