"""Hooks of ``mkdocs build``: the pages that the site has and ``docs/`` has not, and the links between the two.

Model cards, CONTRIBUTING.md and CHANGELOG.md are taken from where they are. The samples are enhanced, so that the page
"Listen" can play them. A link that leaves the site becomes the name of what it points to.
"""

from __future__ import annotations

import re
from pathlib import Path

import soundfile
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from fastenh import Enhancer

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "fastenh" / "weights"
PAGES = {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}
PAGES |= {f"models/{path.name}": path for path in sorted(WEIGHTS.glob("*.md"))}
SAMPLES = sorted(path for path in (ROOT / "samples").iterdir() if path.is_file())
_LISTEN = "<!-- samples -->"
_ADDRESSES = {"../CONTRIBUTING.md": "contributing.md"}
_OUTSIDE = re.compile(r"(?<!!)\[([^]]*)\]\((\.\./[^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and recordings from outside of ``docs/``."""
    for name, path in PAGES.items():
        text = path.read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    enhancer = Enhancer.from_pretrained(device="cpu", dtype="float32")
    for path in SAMPLES:
        noisy, rate = soundfile.read(path, dtype="float32", always_2d=True)
        made = Path(config.site_dir).parent / ".cache" / "docs" / f"{path.stem}.flac"
        made.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(made, enhancer(noisy.T, rate).T, rate)
        for folder, source in (("noisy", path), ("enhanced", made), ("clean", ROOT / "samples" / "clean" / path.name)):
            files.append(File.generated(config, f"listen/{folder}/{source.name}", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave ``docs/`` to the page that stands for them, or nowhere."""
    return _OUTSIDE.sub(_inside, markdown).replace(_LISTEN, _players())


def _inside(link: re.Match[str]) -> str:
    text, address = link.groups()
    return f"[{text}]({_ADDRESSES[address]})" if address in _ADDRESSES else f"`{text.strip('`')}`"


def _players() -> str:
    """A row for each sample: noisy, enhanced, clean."""
    rows = ["| | noisy | enhanced | clean |", "|---|---|---|---|"]
    for path in SAMPLES:
        sources = f"noisy/{path.name}", f"enhanced/{path.stem}.flac", f"clean/{path.name}"
        players = (
            f'<audio controls preload="none" style="width: 7.5rem" src="listen/{source}"></audio>' for source in sources
        )
        rows.append(f"| {path.stem.replace('-', ', ')} | {' | '.join(players)} |")
    return "\n".join(rows)
