"""Archives of recordings: what is in them goes below one folder, or nothing does."""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from fastenh.audio.listing import is_audio_name
from fastenh.errors import ProcessingError

_CHUNK = 1 << 20
Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, size by its header, what opens it while the archive is open


class ArchiveError(ProcessingError, ValueError):
    """An archive that is damaged, not safe, or larger than was allowed; the message names it."""


@dataclass(frozen=True)
class Unpacked:
    folders: dict[Path, int]  # that hold sound files themselves, and how many
    left_out: int  # files that are not sound


def unpack(archive: Path, target: Path, max_bytes: int) -> Unpacked:
    """Unpack the sound files of a .zip, .tar, .tar.* or .7z to ``target``/NAME with their folders, or none at all.

    Raises ``ArchiveError``: for a member that would lie outside (absolute, "..", a drive), for links and devices, for
    more than ``max_bytes`` once unpacked, for a damaged archive, and where the folder is there already.
    """
    folder = target / _stem(archive)
    if folder.exists():
        raise ArchiveError(f"{folder}: is there already, remove it to unpack {archive.name} again")
    target.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target, prefix=".unpacking-"))
    try:
        with _reported(archive):
            left_out = _unpack_into(archive, temporary, max_bytes)
        found = Counter(path.parent.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
        if not found:
            raise ArchiveError(f"{archive}: no sound files in it")
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Unpacked({folder / path: count for path, count in sorted(found.items())}, left_out)


def _stem(archive: Path) -> str:
    name = archive.name
    for suffix in (archive.suffix, ".tar"):
        name = name.removesuffix(suffix)
    return name or archive.name


def _unpack_into(archive: Path, folder: Path, max_bytes: int) -> int:
    """Number of files left out."""
    kind = archive.suffix.lower()
    if kind == ".7z":
        return _unpack_7z(archive, folder, max_bytes)
    members = _of_zip if kind == ".zip" else _of_tar
    if sum(size for name, size, _ in members(archive) if is_audio_name(_safe(archive, name).name)) > max_bytes:
        raise _too_large(archive, max_bytes)
    budget, left_out = max_bytes, 0
    for name, _, content in members(archive):
        path = _safe(archive, name)
        if not is_audio_name(path.name):
            left_out += 1
            continue
        destination = folder / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        with content() as source, destination.open("xb") as file:
            while chunk := source.read(_CHUNK):
                budget -= len(chunk)  # counted again: the sizes in a header are what its maker says
                if budget < 0:
                    raise _too_large(archive, max_bytes)
                file.write(chunk)
    return left_out


def _unpack_7z(archive: Path, folder: Path, max_bytes: int) -> int:
    try:
        import py7zr
        from py7zr.exceptions import ArchiveError as SevenZipError
        from py7zr.exceptions import DecompressionBombError, PasswordRequired
    except ImportError as error:
        raise ArchiveError(f"{archive}: .7z needs an extra: pip install 'fastenh[7z]'") from error
    try:
        with py7zr.SevenZipFile(archive, max_extract_size=max_bytes) as file:
            for member in file.list():
                _safe(archive, member.filename)
                if not (member.is_file or member.is_directory):
                    raise _special(archive, member.filename)
            members = [member for member in file.list() if member.is_file]
            sounds = [member for member in members if is_audio_name(PurePosixPath(member.filename).name)]
            if sum(member.uncompressed for member in sounds) > max_bytes:
                raise _too_large(archive, max_bytes)
            if sounds:
                file.extract(folder, [member.filename for member in sounds])
    except DecompressionBombError as error:
        raise _too_large(archive, max_bytes) from error
    except (SevenZipError, PasswordRequired, ValueError, TypeError, struct.error) as error:  # what damage makes of it
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"{archive}: damaged, or of a kind that cannot be read ({error})") from error
    return len(members) - len(sounds)


def _safe(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts or not path.parts or "\0" in name:
        raise ArchiveError(f"{archive}: {name!r} would lie outside of the folder, nothing was unpacked")
    return path


def _of_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _special(archive, info.filename)
            if not info.is_dir():
                yield info.filename, info.file_size, partial(file.open, info)


def _of_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r:*") as file:
        for member in file:
            if not (member.isreg() or member.isdir()):
                raise _special(archive, member.name)
            if member.isreg():
                yield member.name, member.size, partial(_regular, file, member)


def _regular(file: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = file.extractfile(member)
    assert stream is not None  # as of links and folders
    return stream


def _special(archive: Path, name: str) -> ArchiveError:
    return ArchiveError(f"{archive}: {name!r} is a link or a device, nothing was unpacked")


def _too_large(archive: Path, max_bytes: int) -> ArchiveError:
    return ArchiveError(f"{archive}: more than {max_bytes / 1e9:g} GB once unpacked (--max-gb), nothing was unpacked")


@contextmanager
def _reported(archive: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ArchiveError(f"{archive}: no such file") from error
    except FileExistsError as error:
        raise ArchiveError(f"{archive}: holds {Path(error.filename).name!r} twice") from error
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"{archive}: damaged, or of a kind that cannot be read ({error})") from error
    except RuntimeError as error:  # zipfile: a password is needed
        raise ArchiveError(f"{archive}: cannot be unpacked ({error})") from error
