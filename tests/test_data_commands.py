"""Archives unpack inside of their folder or not at all; packs are trained from like folders."""

import io
import tarfile
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import soundfile
from click.testing import CliRunner
from conftest import noise, voice

from fastenh.audio.listing import list_audio
from fastenh.cli import main


def call(*arguments, code=0):
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def sound(make=voice):
    file = io.BytesIO()
    soundfile.write(file, make(4000), 16_000, format="WAV")
    return file.getvalue()


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make_7z(path, members):
    py7zr = pytest.importorskip("py7zr")
    with mock.patch("py7zr.py7zr.check_archive_path", return_value=True), py7zr.SevenZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(content, name)
    return path


MAKERS = {"a.zip": make_zip, "a.tar.gz": make_tar, "a.tar": lambda p, m: make_tar(p, m, "w"), "a.7z": make_7z}


@pytest.mark.parametrize("name", MAKERS)
def test_sound_files_are_unpacked_with_their_folders(tmp_path, name):
    content = {"top/deep/x.wav": sound(), "top/y.WAV": sound(), "top/readme.txt": b"hello", "top/.hidden.wav": b""}
    archive = MAKERS[name](tmp_path / name, content)
    output = call("data", "prepare", archive, "-o", tmp_path / "out")
    folder = tmp_path / "out" / "a"
    assert f"{folder / 'top' / 'deep'}: 1 sound file\n" in output
    assert "2 files that are not sound were left out" in output
    assert list_audio(folder) == [folder / "top" / "deep" / "x.wav", folder / "top" / "y.WAV"]
    assert (folder / "top" / "y.WAV").read_bytes() == sound()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert "is there already" in call("data", "prepare", archive, "-o", tmp_path / "out", code=1)


def link(kind, target="/etc/passwd"):
    info = tarfile.TarInfo("x.wav")
    info.type, info.linkname = kind, target
    return info


def link_in_zip(path):
    info = zipfile.ZipInfo("x.wav")
    info.external_attr = 0o120777 << 16
    return make_zip(path, {info: "/etc/passwd"})


def link_in_7z(path):
    py7zr = pytest.importorskip("py7zr")
    (path.parent / "x.wav").symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(path, "w") as file:
        file.write(path.parent / "x.wav", "x.wav")
    (path.parent / "x.wav").unlink()


UNSAFE = {
    "up.zip": lambda p: make_zip(p, {"ok.wav": sound(), "../up.wav": sound()}),
    "deep.zip": lambda p: make_zip(p, {"a/../../../up.wav": sound()}),
    "root.zip": lambda p: make_zip(p, {"/tmp/root.wav": sound()}),
    "drive.zip": lambda p: make_zip(p, {"C:/x.wav": sound()}),
    "back.zip": lambda p: make_zip(p, {"..\\..\\x.wav": sound()}),
    "link.zip": link_in_zip,
    "up.tar.gz": lambda p: make_tar(p, {"ok.wav": sound(), "../up.wav": sound()}),
    "root.tar": lambda p: make_tar(p, {"/tmp/root.wav": sound()}, "w"),
    "symlink.tar": lambda p: make_tar(p, {link(tarfile.SYMTYPE): b""}, "w"),
    "hardlink.tar": lambda p: make_tar(p, {link(tarfile.LNKTYPE): b""}, "w"),
    "device.tar": lambda p: make_tar(p, {link(tarfile.CHRTYPE): b""}, "w"),
    "pipe.tar": lambda p: make_tar(p, {link(tarfile.FIFOTYPE): b""}, "w"),
    "link.7z": link_in_7z,
    "up.7z": lambda p: make_7z(p, {"ok.wav": sound(), "x/../../up.wav": sound()}),
}
BROKEN = {
    "cut.zip": (lambda p: cut(make_zip(p, {"x.wav": sound()})), "damaged"),
    "cut.tar.gz": (lambda p: cut(make_tar(p, {"x.wav": sound()})), "damaged"),
    "cut.tar.xz": (lambda p: cut(make_tar(p, {"x.wav": sound()}, "w:xz")), "damaged"),
    "cut.7z": (lambda p: cut(make_7z(p, {"x.wav": sound()})), "damaged"),
    "flipped.zip": (lambda p: flip(make_zip(p, {"x.wav": sound()}, zipfile.ZIP_STORED)), "damaged"),
    "flipped.7z": (lambda p: flip(make_7z(p, {"x.wav": sound()})), "damaged"),
    "text.zip": (lambda p: p.write_text("nothing"), "damaged"),
    "text.tar": (lambda p: p.write_text("nothing"), "damaged"),
    "text.7z": (lambda p: pytest.importorskip("py7zr") and p.write_text("nothing"), "damaged"),
    "absent.zip": (lambda p: None, "no such file"),
    "quiet.zip": (lambda p: make_zip(p, {"a.txt": b"x"}), "no sound files"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(content)


def refused(tmp_path, archive, *options):
    output = call("data", "prepare", archive, "-o", tmp_path / "a" / "b" / "out", *options, code=1)
    assert str(archive) in output
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p != archive]
    assert left == []
    assert list((tmp_path / "a" / "b" / "out").iterdir()) == []
    return output


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_archives_leave_nothing(tmp_path, name):
    UNSAFE[name](tmp_path / name)
    assert "nothing was unpacked" in refused(tmp_path, tmp_path / name)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives_leave_nothing(tmp_path, name):
    make, message = BROKEN[name]
    make(tmp_path / name)
    assert message in refused(tmp_path, tmp_path / name)


@pytest.mark.parametrize("name", MAKERS)
def test_the_size_cap_counts_what_comes_out(tmp_path, name):
    archive = MAKERS[name](tmp_path / name, {"x.wav": bytes(300_000), "y.wav": bytes(300_000)})
    assert "--max-gb" in refused(tmp_path, archive, "--max-gb", "0.0005")
    call("data", "prepare", archive, "-o", tmp_path / "out", "--max-gb", "0.001")


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_that_is_too_large_by_its_headers_writes_nothing(tmp_path, name, monkeypatch):
    pytest.importorskip("py7zr")
    archive = MAKERS[name](tmp_path / name, {"x.wav": bytes(300_000), "notes.txt": bytes(900_000)})
    writes = []
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: writes.append(self))
    monkeypatch.setattr("py7zr.SevenZipFile.extract", lambda *_, **__: writes.append(name))
    assert "--max-gb" in refused(tmp_path, archive, "--max-gb", "0.0002")
    assert writes == []


def test_training_from_packs_is_training_from_folders(data, tmp_path):
    for side in ("speech", "noise"):
        output = call("data", "pack", data / side, "-o", tmp_path / f"{side}.safetensors")
        assert "3 recordings" in output
    sets = ["config.channels=16", "config.front_channels=4", "config.head_channels=8", "config.heads=2"]
    sets += ["config.feed_forward=32", "config.blocks=1", "data.seconds=0.5", "data.batch_size=2", "run.epochs=1"]
    sets += ["run.steps_per_epoch=2", "run.validation_pairs=2", "run.scored_pairs=0"]
    sets = [part for setting in sets for part in ("--set", setting)]
    sources = {"folders": (data / "speech", data / "noise")}
    sources["packs"] = (tmp_path / "speech.safetensors", tmp_path / "noise.safetensors")
    for name, (clean, noises) in sources.items():
        call("train", "dpt-mix", "-o", tmp_path / name, "--clean", clean, "--noise", noises, *sets, "--device", "cpu")
    one, two = ((tmp_path / name / "last.safetensors").read_bytes()[-4000:] for name in sources)
    assert one == two


def test_pack_errors(data, tmp_path):
    assert "ends in .safetensors" in call("data", "pack", data, "-o", tmp_path / "x.bin", code=2)
    assert "does not exist" in call("data", "pack", tmp_path / "x", "-o", tmp_path / "x.safetensors", code=2)
    (tmp_path / "empty").mkdir()
    assert "no audio files" in call("data", "pack", tmp_path / "empty", "-o", tmp_path / "x.safetensors", code=1)
    soundfile.write(tmp_path / "x.wav", noise(100), 16_000)
    assert "cannot be read as sound" in broken_sound(tmp_path)


def broken_sound(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "y.wav").write_text("nothing")
    return call("data", "pack", tmp_path / "bad", "-o", tmp_path / "x.safetensors", code=1)
