"""Files of an object store: fsspec's memory, with faults between the temporary key and the final one."""

import builtins
import io
import json
import time

import pytest
import soundfile
from click.testing import CliRunner
from conftest import noise, voice

pytest.importorskip("upath", reason="needs the extra cloud, or universal-pathlib alone: pip install universal-pathlib")

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from fastenh import remote
from fastenh.cli import main as fastenh
from fastenh.cli.outcome import common_folder
from fastenh.enhance import remote_manifest
from fastenh.enhance.remote_manifest import FOLDER, RemoteManifest
from fastenh.evaluate import metrics

IN, OUT = "memory://bucket/in", "memory://bucket/out"
NAMES = ["a.wav", "deep/b.flac", "deep/c.wav"]


@pytest.fixture
def store():
    """An empty store."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()


def sound(seed, ending="wav"):
    file = io.BytesIO()
    soundfile.write(file, voice(9000, seed) + noise(9000, seed), 16_000, format=ending)
    return file.getvalue()


@pytest.fixture
def folder(store, tmp_path):
    """The same recordings in the store and in a folder of the system."""
    for seed, name in enumerate(NAMES):
        content = sound(seed, name.rpartition(".")[2])
        store.pipe_file(f"/bucket/in/{name}", content)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    return tmp_path / "in"


@pytest.fixture
def run(tiny_checkpoint):
    def run(*arguments, code=0):
        given = map(str, [*arguments, "--model", tiny_checkpoint, "--dtype", "float32"])
        result = CliRunner().invoke(fastenh, ["enhance", *given])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    return run


def visible(store, root="/bucket/out"):
    keys = [key[len(root) + 1 :] for key in store.find(root)]
    return {key: store.cat_file(f"{root}/{key}") for key in keys if not key.startswith(".")}


def parts(store):
    return [key for key in store.find("/bucket") if remote.PART in key]


def test_what_comes_out_is_what_a_folder_gives(run, folder, store, tmp_path):
    run(folder, "-o", tmp_path / "out")
    words = run(IN, "-o", OUT, "--report", "memory://bucket/report.json")
    assert words.endswith(f"-> {OUT}\n")
    assert visible(store) == {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}
    assert not parts(store)
    report = json.loads(store.cat_file("/bucket/report.json"))
    assert [file["source"] for file in report["files"]] == [f"{IN}/{name}" for name in NAMES]
    assert "3 skipped" in run(IN, "-o", OUT)
    # from the store to a folder, and back
    run(IN, "-o", tmp_path / "mixed")
    assert {name: (tmp_path / "mixed" / name).read_bytes() for name in NAMES} == visible(store)
    run(folder, "-o", "memory://bucket/mixed")
    assert visible(store, "/bucket/mixed") == visible(store)


def test_a_folder_beside_its_input_a_single_file_and_hidden_ones(run, folder, store):
    store.pipe_file("/bucket/in/.hidden/x.wav", b"")
    store.pipe_file("/bucket/in/quiet/x.wav", b"")
    store.pipe_file("/bucket/in/quiet/.nomedia", b"")
    store.pipe_file("/bucket/in/x.avi", b"")
    assert "passed over: 1 .avi" in run(f"{IN}/", "--dry-run")
    assert not store.exists("/bucket/in-enhanced")
    run(IN)
    assert sorted(visible(store, "/bucket/in-enhanced")) == NAMES
    run(f"{IN}/a.wav")
    run(f"{IN}/a.wav", "-o", "memory://bucket/one.flac", "--format", "flac")
    assert store.cat_file("/bucket/in/a-enhanced.wav") == store.cat_file("/bucket/in-enhanced/a.wav")
    assert store.cat_file("/bucket/one.flac")[:4] == b"fLaC"


@pytest.mark.parametrize("call", ["put_file", "cp_file"])
def test_a_fault_before_the_final_key_leaves_nothing(run, folder, store, monkeypatch, call):
    intact = getattr(MemoryFileSystem, call)

    def fails(self, source, target, **options):
        if call == "cp_file" and source.endswith(".flac"):
            assert store.exists(source)  # the temporary key is there
            raise OSError(5, "the store is gone")
        if call == "put_file" and target.endswith(".flac"):
            store.pipe_file(target, b"half of it")
            raise ConnectionResetError("the store is gone")
        return intact(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, call, fails)
    assert f"error: {OUT}/deep/b.flac: the store is gone\n" in run(IN, "-o", OUT, code=1)
    assert sorted(visible(store)) == ["a.wav", "deep/c.wav"]
    assert not parts(store)
    monkeypatch.undo()
    assert "1 files enhanced, 2 skipped" in run(IN, "-o", OUT)
    assert sorted(visible(store)) == NAMES


def test_a_temporary_key_that_stays_is_no_trouble_once_all_is_there(run, folder, store, monkeypatch):
    def fails(self, path):
        raise OSError(5, "the store is gone")

    monkeypatch.setattr(MemoryFileSystem, "rm_file", fails)
    run(IN, "-o", OUT)
    monkeypatch.undo()
    assert sorted(name for name in visible(store) if remote.PART not in name) == NAMES
    left = parts(store)
    assert len(left) == 3
    run(IN, "-o", OUT)
    assert parts(store) == left  # they may be of a process that is at work
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 2 * 3600)
    run(IN, "-o", OUT)
    assert not parts(store)
    assert sorted(visible(store)) == NAMES


def test_what_changed_is_made_again(run, folder, store):
    run(IN, "-o", OUT)
    before = visible(store)
    store.pipe_file("/bucket/in/a.wav", sound(7))
    words = run(IN, "-o", OUT, "-v")
    assert "1 files enhanced (1 again: input or settings changed), 2 skipped" in words
    assert "(the input changed)" in words
    assert visible(store)["a.wav"] != before["a.wav"]
    assert "3 files enhanced (3 again" in run(IN, "-o", OUT, "--atten-lim", "6")
    store.pipe_file("/bucket/out/a.wav", b"of somebody else")
    assert "3 skipped" in run(IN, "-o", OUT, "--atten-lim", "6")
    assert "3 files enhanced" in run(IN, "-o", OUT, "--overwrite")


def claims(job, target="memory://bucket/out/a.wav"):
    return RemoteManifest(remote.parse(OUT), {}, job), remote.parse(target)


def test_a_claim_keeps_others_out_while_its_owner_lives(store, monkeypatch):
    monkeypatch.setattr(remote_manifest, "_LOOK", 0.0)
    (ours, target), (theirs, _) = claims("1"), claims("2")
    again, _ = claims("1")
    with ours.claim(target) as mine:
        assert mine
        with theirs.claim(target) as also:
            assert not also
        with again.claim(target) as also:  # a worker in the place of a lost one
            assert also
    with theirs.claim(target) as mine:
        assert mine
    assert not store.find(f"/bucket/out/{FOLDER}")


def test_a_claim_without_a_sign_of_life_is_taken_over(store, monkeypatch):
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(remote_manifest, "_SIGN_OF_LIFE", 1e9)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead[0])
    (lost, target), (waiting, _) = claims("1"), claims("2")
    holder = lost.claim(target)
    holder.__enter__()
    answers = []
    for ahead[0] in (0, 60, 80):
        with waiting.claim(target) as mine:
            answers.append(mine)
    key = store.find(f"/bucket/out/{FOLDER}")[0]
    store.pipe_file(key, lost._sign())  # alive after all
    for ahead[0] in (100, 180, 200):
        with waiting.claim(target) as mine:
            answers.append(mine)
    assert answers == [False, False, False, False, False, True]
    holder.__exit__(None, None, None)


def test_owners_give_signs_of_life(store, monkeypatch):
    monkeypatch.setattr(remote_manifest, "_SIGN_OF_LIFE", 0.01)
    ours, target = claims("1")
    with ours.claim(target):
        key = store.find(f"/bucket/out/{FOLDER}")[0]
        seen, until = {store.cat_file(key)}, time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(store.cat_file(key))
    ours.close()
    assert len(seen) == 3


def test_a_job_waits_for_what_another_one_has_claimed(run, folder, store, monkeypatch):
    """The other one finishes it meanwhile."""
    monkeypatch.setattr(remote_manifest, "_LOOK", 0.0)
    other, target = claims("another")
    claimed = other.claim(target)
    claimed.__enter__()
    looked = RemoteManifest._take

    def take(self, key):
        mine = looked(self, key)
        if not mine:
            store.pipe_file("/bucket/out/a.wav", b"of the other one")
            claimed.__exit__(None, None, None)
        return mine

    monkeypatch.setattr(RemoteManifest, "_take", take)
    assert "2 files enhanced, 1 skipped" in run(IN, "-o", OUT)
    assert visible(store)["a.wav"] == b"of the other one"


def test_evaluate_from_the_store(store, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "available", lambda: ("si_sdr",))  # quick
    for seed in range(2):
        clean = voice(16_000, seed)
        for place, samples in (("clean", clean), ("noisy", clean + noise(16_000, seed)), ("done", 0.5 * clean)):
            file = io.BytesIO()
            soundfile.write(file, samples, 16_000, format="WAV")
            store.pipe_file(f"/bucket/{place}/{seed}.wav", file.getvalue())
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / f"{seed}.wav").write_bytes(file.getvalue())
    figures = []
    for base, out in (("memory://bucket", "memory://bucket/results"), (tmp_path, tmp_path / "results")):
        given = [f"{base}/noisy", f"{base}/clean", "--enhanced", f"{base}/done", "--jobs", "1"]
        result = CliRunner().invoke(fastenh, ["evaluate", *given, "--out", f"{out}.json", "--csv", f"{out}.csv"])
        assert result.exit_code == 0, result.output
        figures.append(str(out))
    ours, theirs = store.cat_file("/bucket/results.json"), (tmp_path / "results.json").read_bytes()
    assert json.loads(ours)["systems"] == json.loads(theirs)["systems"]
    assert store.cat_file("/bucket/results.csv") == (tmp_path / "results.csv").read_bytes()
    assert not store.exists("/bucket/results.json.part")


def test_pack_from_the_store_and_into_it(folder, store, tmp_path):
    for sources, pack in (([IN], "memory://bucket/a.safetensors"), ([folder], tmp_path / "a.safetensors")):
        result = CliRunner().invoke(fastenh, ["data", "pack", *map(str, sources), "-o", str(pack)])
        assert result.exit_code == 0, result.output
        assert "3 recordings" in result.output
    assert store.cat_file("/bucket/a.safetensors") == (tmp_path / "a.safetensors").read_bytes()
    result = CliRunner().invoke(
        fastenh, ["data", "pack", "memory://bucket/a.safetensors", "-o", str(tmp_path / "b.safetensors")]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_errors_are_one_line(run, folder, store, monkeypatch):
    assert run("memory://bucket/none", "-o", OUT, code=1).startswith(
        "error: memory://bucket/none: no such file or folder"
    )
    assert "no-such://x: " in run("no-such://x", code=2)
    store.pipe_file("/bucket/in/bad.wav", b"text")
    assert f"error: {IN}/bad.wav: cannot be read as sound" in run(IN, "-o", OUT, code=1)

    def fails(self, path, **options):
        raise RuntimeError("Unable to locate credentials\nand more")

    monkeypatch.setattr(MemoryFileSystem, "find", fails)
    assert f"Error: {IN}: Unable to locate credentials\n" in run(IN, "-o", OUT, code=1)
    result = CliRunner().invoke(fastenh, ["evaluate", IN, OUT])
    assert (result.exit_code, "Traceback" in result.output) == (1, False)


def test_without_the_extra_one_line_says_so(run, monkeypatch):
    intact = builtins.__import__

    def hidden(name, *arguments):
        if name.split(".")[0] == "upath":
            raise ImportError("No module named 'upath'")
        return intact(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", hidden)
    assert "pip install 'fastenh[cloud]'" in run(IN, code=2)


def test_no_bucket_is_made_of_a_mistyped_name(run, folder, store, monkeypatch):
    def fails(self, *arguments, **options):
        raise AssertionError("a folder is made")

    monkeypatch.setattr(MemoryFileSystem, "mkdir", fails)
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda self, file, key: store.pipe_file(key, b""))
    run(f"{IN}/a.wav", "-o", "memory://other/a.wav")


def test_common_folder_of_addresses():
    assert common_folder(["s3://b/x/y", "s3://b/x/z/w"]) == "s3://b/x"
    assert common_folder(["s3://b/x"]) == "s3://b/x"
