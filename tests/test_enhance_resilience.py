"""What goes wrong around a job: disks, links, pipes, headers that lie, files that were left behind."""

import json
import os
import resource
import shutil
import struct
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.audio import files
from fastenh.cli import main
from fastenh.enhance import job, layout
from fastenh.enhance.engine import Pool
from fastenh.enhance.enhancer import EnhancementError


class Half(nn.Module):
    """Halves, and counts the windows of each call."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, waveform):
        self.batches.append(len(waveform))
        return 0.5 * waveform


@pytest.fixture
def half():
    return Enhancer(Half(), "cpu", span_seconds=0.25, context_seconds=0.1)


@pytest.fixture
def run(tiny_checkpoint):
    def call(*arguments, code=0):
        result = CliRunner().invoke(main, ["enhance", "--model", str(tiny_checkpoint), *map(str, arguments)])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    return call


def enhance(source, target, enhancer, **options):
    (result,) = job.run([layout.Task(source, target)], enhancer, job.Options(**options))
    return result


def wav(path, seconds=0.5, rate=16_000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, voice(int(seconds * rate)) + noise(int(seconds * rate)), rate, **options)
    return path


@contextmanager
def largest_file(size):
    """No file may grow beyond it: what a full disk looks like to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.w64"])
@pytest.mark.parametrize("size", [0, 100, 6000])
def test_no_room_for_the_output(tmp_path, half, name, size):
    source = tmp_path / name
    soundfile.write(source, noise(160_000), 16_000)
    with largest_file(size):
        result = enhance(source, tmp_path / "out" / name, half)
    assert result.status == "failed"
    assert name in result.error
    assert "File too large" in result.error
    assert list((tmp_path / "out").iterdir()) == []
    assert enhance(source, tmp_path / "out" / name, half).status == "enhanced"


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk]).returncode:
        pytest.skip("no right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(tmp_path, small_disk, run):
    for name in ("a.wav", "b.wav", "c.wav"):
        wav(tmp_path / "in" / name, seconds=6)  # 192 kB
    report = tmp_path / "report.json"
    said = run(tmp_path / "in", "-o", small_disk / "out", "--jobs", 1, "--report", report, code=1)
    assert "1 files enhanced, 2 failed" in said
    assert said.count("the disk is full") == 2
    assert [file["status"] for file in json.loads(report.read_text())["files"]] == ["enhanced", "failed", "failed"]
    left = [path.name for path in (small_disk / "out").iterdir() if not path.name.startswith(".fastenh-manifest")]
    assert left == ["a.wav"]
    assert soundfile.info(small_disk / "out" / "a.wav").frames == 96_000


def test_a_disk_that_cannot_be_written(tmp_path, small_disk, run):
    wav(tmp_path / "in" / "a.wav")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for options in ([], ["--dry-run"]):
        said = run(tmp_path / "in", "-o", small_disk / "out", *options, code=1)
        assert "1 failed" in said
        assert "Permission denied" in said or "Read-only file system" in said


def test_a_finished_folder_that_cannot_be_written_is_skipped(tmp_path, small_disk, run):
    source = wav(tmp_path / "in" / "a.wav")
    wav(tmp_path / "in" / "sub" / "b.wav")
    out = small_disk / "out"
    run(tmp_path / "in", "-o", out)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "0 files enhanced, 2 skipped" in run(tmp_path / "in", "-o", out)
    said = run(tmp_path / "in", "-o", out, "--atten-lim", 6, code=1)
    assert "2 failed" in said
    assert "Read-only file system" in said
    wav(source, 0.7)
    assert "0 files enhanced, 1 skipped (the output exists; --overwrite replaces it), 1 failed" in run(
        tmp_path / "in", "-o", out, code=1
    )


def test_a_finished_folder_without_the_right_to_write_is_skipped(tmp_path, run, monkeypatch):
    """Root may write everywhere, so that the error comes from a double of what opens the manifest to claim a file."""
    wav(tmp_path / "in" / "a.wav")
    run(tmp_path / "in", "-o", tmp_path / "out")

    def refused(manifest):
        raise PermissionError(13, "Permission denied", str(manifest.folder))

    monkeypatch.setattr("fastenh.enhance.manifest.FileManifest._opened", refused)
    assert "1 skipped" in run(tmp_path / "in", "-o", tmp_path / "out")
    wav(tmp_path / "in" / "b.wav")
    said = run(tmp_path / "in", "-o", tmp_path / "out", code=1)
    assert "1 skipped (the output exists; --overwrite replaces it), 1 failed" in said
    assert "b.wav: Permission denied" in said


def test_a_folder_without_the_right_to_write(tmp_path, half, monkeypatch):
    """Root may write everywhere, so that the error comes from a double of what makes the temporary file."""

    def refused(dir, **_):
        raise PermissionError(13, "Permission denied", f"{dir}/.fastenh-part-x.wav")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    result = enhance(wav(tmp_path / "a.wav"), tmp_path / "b.wav", half)
    assert result.error == f"{tmp_path / 'b.wav'}: Permission denied"


def test_links_that_go_round_in_a_circle(tmp_path, run):
    root = tmp_path / "in"
    wav(root / "a.wav")
    (root / "self.wav").symlink_to("self.wav")
    (root / "one.wav").symlink_to("two.wav")
    (root / "two.wav").symlink_to("one.wav")
    (root / "dangling.wav").symlink_to("nowhere.wav")
    (root / "up").symlink_to("..")
    said = run(root, code=1)
    assert "1 files enhanced, 4 failed" in said
    for name in ("self.wav", "one.wav", "two.wav", "dangling.wav"):
        assert f"{name}: cannot be read as sound" in said.replace("\n", "")


def test_a_pipe_with_the_name_of_a_sound_is_passed_over(tmp_path, run):
    wav(tmp_path / "in" / "a.wav")
    os.mkfifo(tmp_path / "in" / "pipe.wav")
    assert "1 files enhanced" in run(tmp_path / "in")


def test_folders_that_cannot_be_looked_into_are_named(tmp_path, monkeypatch, run):
    """Root may look into all, so that the error comes from a double of os.scandir."""
    wav(tmp_path / "in" / "a.wav")
    wav(tmp_path / "in" / "locked" / "b.wav")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    said = run(tmp_path / "in", code=1)
    assert "locked: cannot be looked into (Permission denied)" in said
    assert "1 files enhanced, 1 failed" in said


def test_a_file_without_the_right_to_read(tmp_path, half):
    if not os.geteuid():
        pytest.skip("root may read all")
    source = wav(tmp_path / "a.wav")
    source.chmod(0)
    assert "a.wav: cannot be read as sound (Permission denied)" in enhance(source, tmp_path / "b.wav", half).error


def test_names(tmp_path, run):
    """Of 255 bytes, beyond ASCII, with spaces, brackets, newlines and leading dashes."""
    names = ["x" * 251 + ".wav", "ж" * 125 + ".wav", '[red] a b\'s "c".wav', "two\nlines.wav", "-o.wav", "中文 🎧.wav"]
    for name in names:
        wav(tmp_path / "in" / name, 0.1)
    run(tmp_path / "in", "-o", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == sorted(names)
    said = run(tmp_path / "in", "-o", tmp_path / "long", "--suffix", "-enhanced", code=1)  # longer than a name may be
    assert "4 files enhanced, 2 failed" in said
    assert "File name too long" in said


def test_what_killed_runs_left_is_removed_and_what_others_write_is_not(tmp_path, run):
    wav(tmp_path / "in" / "a.wav")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".fastenh-part-dead.wav").write_bytes(b"half")
    with files.writing(out / "other.wav", files.Encoding(16_000, 1, "WAV", "PCM_16")) as writer:
        writer.write(noise(100)[None])
        run(tmp_path / "in", "-o", out)
        assert not (out / ".fastenh-part-dead.wav").exists()
    assert soundfile.info(out / "other.wav").frames == 100


@pytest.mark.parametrize(("rate", "channels"), [(0, 1), (1, 1), (999, 1), (2**31 - 1, 1), (16_000, 65), (16_000, 0)])
def test_absurd_headers(tmp_path, half, rate, channels):
    source = wav(tmp_path / "a.wav")
    content = bytearray(source.read_bytes())
    content[22:28] = struct.pack("<HI", channels, rate)
    source.write_bytes(content)
    assert "a.wav" in enhance(source, tmp_path / "b.wav", half).error


def test_a_header_that_says_more_than_there_is(tmp_path, half):
    source = wav(tmp_path / "a.wav", 1.0)
    content = source.read_bytes()
    source.write_bytes(content[:-8000])
    result = enhance(source, tmp_path / "b.wav", half)
    assert result.warnings == ["header and file disagree about the length: what is there was taken"]
    assert soundfile.info(tmp_path / "b.wav").frames == 12_000
    streamed = content[:40] + b"\xff" * 4 + content[44:]  # as programs write that cannot go back
    source.write_bytes(streamed)
    assert enhance(source, tmp_path / "c.wav", half).audio_seconds == 1.0


@pytest.mark.parametrize("peak", [1e-30, 1e-12, 1.0, 1e6, 1e14, 1e16, 3e38])
def test_levels_from_nothing_to_absurd(tmp_path, tiny_model, peak):
    signal = (voice(16_000) + noise(16_000)) * peak
    soundfile.write(tmp_path / "a.wav", signal, 16_000, subtype="FLOAT")
    result = enhance(tmp_path / "a.wav", tmp_path / "b.wav", Enhancer(tiny_model, "cpu"))
    assert result.status == "enhanced", result
    assert np.isfinite(soundfile.read(tmp_path / "b.wav")[0]).all()


def test_more_than_wav_can_count(tmp_path, half, monkeypatch):
    """The limit of 4 GB, made small: FLAC becomes RF64 under the name .wav, and a WAV never wraps its counter."""
    monkeypatch.setattr(files, "_RIFF_BYTES", 20_000)
    source = tmp_path / "a.flac"
    soundfile.write(source, noise(16_000), 16_000)
    result = enhance(source, tmp_path / "a.wav", half)
    assert "RF64" in result.warnings[0]
    assert soundfile.info(tmp_path / "a.wav").format == "RF64"
    assert soundfile.info(tmp_path / "a.wav").frames == 16_000
    with (
        pytest.raises(files.AudioError, match="longer than its input"),
        files.writing(tmp_path / "b.wav", files.Encoding(16_000, 1, "WAV", "PCM_16"), frames=10) as writer,
    ):
        writer.write(noise(16_000)[None])
    assert not (tmp_path / "b.wav").exists()


def test_reading_beyond_4_gb(tmp_path):
    """A sparse RF64 of 6 GB: the header counts all of it, and what lies at its end is found."""
    path, frames = tmp_path / "a.rf64", 3 * 2**30
    soundfile.write(path, np.zeros(2000), 16_000, format="RF64", subtype="PCM_16")
    head = bytearray(path.read_bytes()[: path.stat().st_size - 4000])
    place = head.index(b"ds64") + 8
    head[place : place + 24] = struct.pack("<QQQ", len(head) - 8 + 2 * frames, 2 * frames, frames)
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + 2 * (frames - 3))
        file.write(struct.pack("<3h", 16384, -16384, 8192))
    with files.reading(path) as reader:
        assert reader.frames == frames
        reader._file.seek(frames - 1000)
        (block,) = reader.blocks()
    np.testing.assert_allclose(block[0, -3:], [0.5, -0.5, 0.25])


def test_conversion(tmp_path, run):
    root = tmp_path / "in"
    wav(root / "a.wav", subtype="FLOAT")
    wav(root / "b.flac", subtype="PCM_24")
    wav(root / "c.ogg")
    run(root, "-o", tmp_path / "flac", "--format", "flac")
    kinds = {path.name: soundfile.info(path).subtype for path in (tmp_path / "flac").glob("*.flac")}
    assert kinds == {"a.flac": "PCM_24", "b.flac": "PCM_24", "c.flac": "PCM_16"}
    run(root, "-o", tmp_path / "opus", "--format", "opus")
    assert soundfile.info(tmp_path / "opus" / "a.opus").subtype == "OPUS"
    run(root / "a.wav", "-o", tmp_path / "one.flac", "--format", "flac")
    wav(root / "b.wav")
    said = run(root, "-o", tmp_path / "both", "--format", "wav", code=2)
    assert "b.wav: would hold both" in said
    assert not (tmp_path / "both").exists()


def test_dry_run_opens_what_it_plans(tmp_path, run):
    """What would fail is said to, before anything is written."""
    root = tmp_path / "in"
    wav(root / "good.wav")
    cut = wav(root / "cut.flac", 2.0)
    cut.write_bytes(cut.read_bytes()[:600])  # a header, and nothing of the sound
    soundfile.write(root / "rate.wav", voice(4410), 44_100)
    soundfile.write(root / "none.wav", voice(0), 16_000)
    said = run(root, "-o", tmp_path / "out", "--dry-run", code=1)
    assert "cut.flac: 600 bytes, but no sound" in said
    assert "3 files to be enhanced, 1 failed" in said
    said = run(root, "-o", tmp_path / "out", "--dry-run", "--format", "opus", code=1)
    assert f"{tmp_path / 'out' / 'rate.opus'}: cannot be written as OGG/OPUS, 44100 Hz" in said
    assert f"{tmp_path / 'out' / 'none.opus'}: cannot be written; its container" in said
    assert "1 files to be enhanced, 3 failed" in said
    (tmp_path / "file").write_text("")
    assert "Not a directory" in run(root, "-o", tmp_path / "file" / "deep", "--dry-run", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]


def test_dry_run_says_what_would_happen_and_does_nothing(tmp_path, run):
    root, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.wav", "b.wav", "c.wav"):
        wav(root / name)
    (root / "bad.wav").write_text("text")
    said = run(root, "-o", out, "--dry-run", code=1)
    assert "a.wav: planned" in said
    assert "3 files to be enhanced, 1 failed" in said
    assert not out.exists()
    run(root, "-o", out, code=1)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    wav(root / "b.wav", 0.6)
    report = tmp_path / "report.json"
    said = run(root, "-o", out, "--dry-run", "--report", report, code=1)
    assert "b.wav: planned again (the input changed)" in said
    assert "1 files to be enhanced (1 again: input or settings changed), 2 skipped" in said
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert json.loads(report.read_text())["summary"]["planned"] == 1


def test_report(tmp_path, run):
    """What docs/report.md says."""
    root, report = tmp_path / "in", tmp_path / "report.json"
    wav(root / "good.wav")
    spoilt = np.concatenate([voice(4000), [np.nan, np.inf], 3 * voice(4000)])
    soundfile.write(root / "spoilt.wav", spoilt, 16_000, subtype="FLOAT")
    (root / "bad.wav").write_text("text")
    run(root, "--report", report, code=1)
    content = json.loads(report.read_text())
    assert set(content) == {"fastenh", "settings", "summary", "files"}
    assert set(content["settings"]) == {
        "engine", "model", "device", "dtype", "backend", "atten_lim_db", "bandwidth", "vad", "track", "bit_rate",
        "span_seconds", "context_seconds", "live", "dry_run",
    }  # fmt: skip
    assert set(content["summary"]) == {
        "enhanced", "again", "skipped", "failed", "planned", "warned", "passed_over", "audio_seconds",
        "elapsed_seconds", "real_time_factor",
    }  # fmt: skip
    bad, good, spoilt = content["files"]
    assert [file["status"] for file in content["files"]] == ["failed", "enhanced", "enhanced"]
    assert all(
        set(file)
        == {
            "source", "target", "status", "audio_seconds", "elapsed_seconds", "times_real_time", "warnings", "error",
            "again",
        }
        for file in content["files"]
    )  # fmt: skip
    assert good["audio_seconds"] == 0.5
    assert good["times_real_time"] > 0
    assert spoilt["warnings"] == ["2 NaN or infinite samples taken as silence"]
    assert "cannot be read" in bad["error"]


@pytest.mark.parametrize(
    "options", [["--jobs", "1", "--threads", "1"], ["--jobs", "7", "--threads", "3"], ["--batch-size", "5"]]
)
def test_jobs_threads_and_batches_change_nothing(tmp_path, run, options):
    root = tmp_path / "in"
    spans = ["--span-seconds", "0.5", "--context-seconds", "0.1"]
    for index in range(6):
        wav(root / f"{index}.wav", 0.3 + 0.7 * index, subtype="FLOAT")
    wav(root / "stereo.wav", 2.0)
    soundfile.write(root / "stereo.wav", np.stack([voice(30_000), noise(30_000)], 1), 44_100, subtype="FLOAT")
    run(root, "-o", tmp_path / "one", *spans)
    run(root, "-o", tmp_path / "two", *spans, *options)
    for path in root.iterdir():
        one, two = (files.read(tmp_path / name / path.name)[0] for name in ("one", "two"))
        np.testing.assert_allclose(one, two, atol=1e-6, rtol=0)


def test_spans_of_the_command_line(tmp_path, run):
    source = wav(tmp_path / "a.wav")
    for value in ("0", "-1", "nan", "inf", "1e9"):
        assert "span" in run(source, "--span-seconds", value, code=2)
    run(source, "--span-seconds", "0.1", "--context-seconds", "0")
    assert "--batch-size" in run(source, "--batch-size", "0", code=2)


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, caplog):
    class Small(Half):
        def forward(self, waveform):
            if len(waveform) > 3:
                raise torch.OutOfMemoryError("simulated")
            return super().forward(waveform)

    enhancer = Enhancer(Small(), "cpu", span_seconds=0.1, context_seconds=0.05, batch_size=16)
    signal = voice(64_000)
    np.testing.assert_allclose(enhancer(signal, 16_000), 0.5 * signal, atol=1e-6)
    assert enhancer.batch_size == 2
    assert max(enhancer.model.batches) <= 3
    assert next(record.message for record in caplog.records).startswith("out of memory: 8 windows at a time")


def test_a_window_that_never_fits_is_a_failed_file(tmp_path):
    class Greedy(nn.Module):
        def forward(self, waveform):
            raise torch.OutOfMemoryError("simulated")

    source = wav(tmp_path / "a.wav")
    result = enhance(source, tmp_path / "b.wav", Enhancer(Greedy(), "cpu", batch_size=4))
    assert "--span-seconds" in result.error


def test_a_model_that_breaks_is_a_failed_file_and_the_others_go_on(tmp_path):
    class Picky(nn.Module):
        def forward(self, waveform):
            if waveform.abs().max() > 0.9:
                raise RuntimeError("no\nmore")
            return waveform * 0.5

    soundfile.write(tmp_path / "loud.wav", np.tile([0.95, -0.95], 4500), 16_000)
    wav(tmp_path / "soft.wav")
    tasks = [layout.Task(tmp_path / name, tmp_path / "out" / name) for name in ("loud.wav", "soft.wav")]
    loud, soft = sorted(job.run(tasks, Enhancer(Picky(), "cpu")), key=lambda result: result.source)
    assert "the model failed: no" in loud.error
    assert soft.status == "enhanced"


def test_windows_of_several_files_share_a_batch():
    """The first call holds the only worker while windows of one length pile up."""
    go, calls = threading.Event(), []

    def slow(windows):
        go.wait(10)
        calls.append(len(windows))
        return [0.5 * window for window in windows]

    with Pool(slow, batch_size=4) as pool:
        first = pool.submit(np.ones(10))
        while pool._items:  # until the worker has it
            pass
        others = [pool.submit(np.full(length, 1.0)) for length in (10, 10, 20, 10, 10, 10, 10, 10)]
        go.set()
        results = [future.result(timeout=10) for future in (first, *others)]
    assert [result.size for result in results] == [10, 10, 10, 20, 10, 10, 10, 10, 10]
    assert calls == [1, 2, 1, 4, 1]


def test_a_closed_pool_cancels_what_waits():
    hold, started = threading.Event(), threading.Event()

    def slow(windows):
        started.set()
        hold.wait(10)
        return windows

    with Pool(slow, batch_size=1) as pool:
        running, waiting = pool.submit(np.ones(3)), None
        started.wait(10)
        waiting = pool.submit(np.ones(3))
        threading.Timer(0.1, hold.set).start()
    assert running.result().size == 3
    assert waiting.cancelled()


def test_a_job_that_is_left_early_leaves_nothing_half_done(tmp_path, half):
    for index in range(20):
        wav(tmp_path / "in" / f"{index}.wav", 1.0)
    tasks = [layout.Task(path, tmp_path / "out" / path.name) for path in (tmp_path / "in").iterdir()]
    results = job.run(tasks, half)
    first = next(results)
    results.close()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert first.target.name in left
    assert len(left) < 20
    assert not any(name.startswith(".") for name in left)


def test_errors_of_the_model_reach_the_python_interface():
    class Broken(nn.Module):
        def forward(self, waveform):
            raise RuntimeError("shape")

    with pytest.raises(EnhancementError, match="the model failed: shape"):
        Enhancer(Broken(), "cpu")(voice(1000), 16_000)


def test_progress_is_told_in_bytes_and_seconds(tmp_path, half):
    for index in range(3):
        wav(tmp_path / "in" / f"{index}.wav", 1.0)
    tasks = [layout.Task(path, tmp_path / "out" / path.name) for path in sorted((tmp_path / "in").iterdir())]
    meter = job.Meter(tasks)
    assert sum(result.status == "enhanced" for result in job.run(tasks, half, meter=meter)) == 3
    assert meter.audio_seconds == pytest.approx(3.0)
    assert meter.bytes == pytest.approx(meter.total_bytes)
    shutil.rmtree(tmp_path / "out")
