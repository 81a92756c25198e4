"""Files that are replaced as a whole or not at all."""

import multiprocessing
import os
import signal
import stat
import threading

import pytest

from fastenh import atomic
from fastenh.atomic import remove_abandoned, replacing, replacing_locked

needs_locks = pytest.mark.skipif(os.name == "nt", reason="files are locked by being open on Windows")
needs_modes = pytest.mark.skipif(os.name == "nt", reason="files have no modes on Windows")

both = pytest.mark.parametrize("replace", [replacing, replacing_locked])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@both
@pytest.mark.parametrize("before", [None, "old"])
def test_the_target_is_what_it_was_until_the_new_content_is_complete(tmp_path, replace, before):
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    with replace(path) as temporary:
        temporary.write_text("new")
        assert (path.read_text() if path.exists() else None) == before
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("replace", "prefix"), [(replacing, ".fastenh-new-"), (replacing_locked, ".fastenh-part-")])
def test_the_temporary_file_is_hidden_beside_the_target_and_has_its_suffix(tmp_path, replace, prefix):
    with replace(tmp_path / "a.b.flac") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(prefix)
        assert temporary.suffix == ".flac"


@both
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_leaves_the_target_as_it_was_and_nothing_else(tmp_path, replace, before, error):
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)

    def write():
        with replace(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == (["a.txt"] if before else [])
    assert not before or path.read_text() == before


@both
def test_a_target_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path, replace):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError), replace(tmp_path / "a.txt") as temporary:  # noqa: PT011 (its kind differs by system)
        temporary.write_text("new")
    assert names(tmp_path) == ["a.txt"]


@both
def test_the_folder_of_the_target_is_missing(tmp_path, replace):
    with pytest.raises(FileNotFoundError), replace(tmp_path / "gone" / "a.txt"):
        pytest.fail("there is nothing to write to")
    assert names(tmp_path) == []


def test_a_temporary_file_that_was_removed_meanwhile_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"


@needs_modes
def test_permissions_are_those_of_any_new_file_unless_given(tmp_path):
    plain, made, given = tmp_path / "plain", tmp_path / "made", tmp_path / "given"
    plain.write_text("")
    for path, asked in ((made, None), (given, 0o600)):
        with replacing(path, asked) as temporary:
            temporary.write_text("new")
    assert mode(made) == mode(plain)
    assert mode(given) == 0o600


@needs_modes
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, monkeypatch, umask, expected):
    monkeypatch.setattr(atomic, "_UMASK", umask)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert mode(tmp_path / "a.txt") == expected


@needs_modes
def test_permissions_of_the_file_before_do_not_matter(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o400)
    with replacing(path, 0o644) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert mode(path) == 0o644


def test_a_target_that_is_a_link_is_replaced_itself(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "real").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()


@both
def test_a_name_as_long_as_names_may_be(tmp_path, replace):
    path = tmp_path / ("x" * 251 + ".wav")
    with replace(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@both
def test_several_threads_write_the_same_file(tmp_path, replace):
    """The last one wins; no reader sees a part."""
    path = tmp_path / "a.txt"

    def write(letter):
        for _ in range(20):
            with replace(path) as temporary:
                temporary.write_text(letter * 1000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            content = path.read_text()
            assert len(content) == 1000 == content.count(content[0])
    assert names(tmp_path) == ["a.txt"]


@needs_locks
def test_abandoned_files_are_removed_and_those_in_use_stay(tmp_path):
    (tmp_path / ".fastenh-part-dead.wav").write_text("half")
    (tmp_path / ".fastenh-manifest.jsonl").write_text("{}")
    with replacing_locked(tmp_path / "a.wav") as temporary:
        temporary.write_text("new")
        remove_abandoned(tmp_path)
        assert names(tmp_path) == [".fastenh-manifest.jsonl", temporary.name]
    assert names(tmp_path) == [".fastenh-manifest.jsonl", "a.wav"]


def test_what_was_never_locked_is_never_abandoned(tmp_path):
    """Some writers replace the temporary file by one of their own, on which there is no lock."""
    with replacing(tmp_path / "a.wav") as temporary:
        (tmp_path / ".own").write_text("new")
        (tmp_path / ".own").replace(temporary)
        remove_abandoned(tmp_path)
    assert names(tmp_path) == ["a.wav"]
    assert (tmp_path / "a.wav").read_text() == "new"


def test_nothing_is_abandoned_where_there_is_no_folder(tmp_path):
    remove_abandoned(tmp_path / "gone")


def _write_for_ever(path, begun):
    with replacing_locked(path) as temporary:
        temporary.write_text("half")
        begun.set()
        signal.pause()


@needs_locks
def test_a_process_that_is_killed(tmp_path):
    """Its lock ends with it: what it left is removed from then on, and not before."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_write_for_ever, args=(path, begun))
    process.start()
    assert begun.wait(60)
    remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == 2
    process.kill()
    process.join()
    assert len(names(tmp_path)) == 2
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Files are replaced there as everywhere, and nobody's are removed."""

    def refuse(handle):
        raise OSError("no locks available")

    monkeypatch.setattr(atomic, "_lock", refuse)
    with replacing_locked(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        remove_abandoned(tmp_path)
    assert names(tmp_path) == ["a.txt"]
