"""What goes into the wheel: all of the two packages, and nothing else."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (ROOT / "fastenh", ROOT / "kernels" / "fastenh_kernels")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def found() -> set[str]:
    """The packages that setuptools finds by its settings in pyproject.toml."""
    find = SETTINGS["packages"]["find"]
    assert not find["namespaces"]  # else another function would have to be asked
    return {name for root in find["where"] for name in find_packages(str(ROOT / root), include=find["include"])}


def files() -> Iterator[tuple[str, Path]]:
    """(package, file in it) of all that is in the packages, less what Python wrote there.

    The package of a module is its folder; that of other files may be a folder further up.
    """
    for top in PACKAGES:
        for path in top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                package = path.parent
                while path.suffix != ".py" and not (package / "__init__.py").exists():
                    package = package.parent
                yield ".".join(package.relative_to(top.parent).parts), path.relative_to(package)


def test_every_folder_of_the_packages_is_found_and_no_other():
    assert found() == {package for package, _ in files()}


def test_every_file_that_is_not_python_is_package_data():
    data = SETTINGS["package-data"]
    left_out = [p for name, p in files() if p.suffix != ".py" and not any(map(p.match, data.get(name, [])))]
    assert not left_out


def test_the_samples_of_the_demo_are_those_of_the_repository():
    ours, theirs = ROOT / "samples", ROOT / "fastenh" / "demo" / "samples"
    names = [path.relative_to(ours) for path in ours.rglob("*.*") if path.is_file() and path.name != ".nomedia"]
    assert sorted(names) == sorted(path.relative_to(theirs) for path in theirs.rglob("*.*") if path.is_file())
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)
