"""fastenh enhance: files and folders, through the command line."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.audio import listing
from fastenh.audio.files import AudioError, read
from fastenh.cli import main
from fastenh.enhance import job, layout, manifest


@pytest.fixture
def run(tiny_checkpoint):
    def call(*arguments, code=0):
        result = CliRunner().invoke(main, ["enhance", "--model", str(tiny_checkpoint), *map(str, arguments)])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    return call


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    soundfile.write(root / "a.wav", voice(8000) + noise(8000), 16_000)
    soundfile.write(root / "deep" / "ü b.flac", np.stack([voice(9000), noise(9000)]).T, 44_100, subtype="PCM_24")
    return root


def tree(folder):
    """Names of the files below a folder, without the manifests."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != manifest.NAME)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def test_folder_beside_its_input(run, folder):
    output = run(folder)
    target = folder.with_name("in-enhanced")
    assert tree(target) == tree(folder)
    for name in tree(folder):
        (before, encoding), (after, encoding_after) = read(folder / name), read(target / name)
        assert encoding == encoding_after
        assert before.shape == after.shape
        assert not np.array_equal(before, after)
    assert "2 files enhanced" in output
    assert "real-time factor" in output
    assert "in-enhanced" in output


def test_samples_are_enhanced_without_their_references(run, tmp_path):
    run(SAMPLES, "-o", tmp_path / "out")
    assert tree(tmp_path / "out") == sorted(p.name for p in SAMPLES.iterdir() if p.is_file())
    for name in tree(tmp_path / "out"):
        (before, encoding), (after, encoding_after) = read(SAMPLES / name), read(tmp_path / "out" / name)
        assert (before.shape, encoding) == (after.shape, encoding_after)


def test_several_inputs_and_single_files(run, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    run(folder, other, folder / "a.wav", "-o", tmp_path / "out", "--suffix", "-x")
    names = ["a-x.wav", "in/a-x.wav", "in/deep/ü b-x.flac", "other/a-x.wav", "other/deep/ü b-x.flac"]
    assert tree(tmp_path / "out") == names
    run(folder / "a.wav")
    assert (folder / "a-enhanced.wav").exists()
    run(folder / "a.wav", "-o", tmp_path / "one.wav")
    assert (tmp_path / "one.wav").exists()
    assert "must end in .wav" in run(folder / "a.wav", "-o", tmp_path / "one.mp3", code=2)


def test_threads_is_how_many_windows_run_at_a_time_on_a_core_each(run, tmp_path, monkeypatch):
    threads, seen = torch.get_num_threads() + 2, set()
    together = threading.Barrier(threads)
    enhance = Enhancer.run

    def waiting(enhancer, windows):
        together.wait(5)  # for as many others
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return enhance(enhancer, windows)

    monkeypatch.setattr(Enhancer, "run", waiting)
    for index in range(2 * threads):
        soundfile.write(tmp_path / f"{index}.wav", voice(1600), 16_000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # what a thread has that is not told otherwise
    try:
        run(tmp_path, "-o", tmp_path / "out", "--threads", threads)
    finally:
        torch.set_num_threads(before)
    assert len(seen) == threads
    assert {cores for _, cores in seen} == {1}


def test_existing_outputs_are_skipped_unless_overwritten(run, folder):
    run(folder)
    target = folder.with_name("in-enhanced") / "a.wav"
    target.write_bytes(b"mine")
    assert "2 skipped" in run(folder)
    assert target.read_bytes() == b"mine"
    run(folder, "--overwrite")
    assert target.read_bytes() != b"mine"


def test_what_changed_is_made_again_and_the_rest_is_not(run, folder, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report.json"
    run(folder, "-o", out)
    before = {name: (out / name).read_bytes() for name in tree(out)}
    assert "2 skipped" in run(folder, "-o", out)
    soundfile.write(folder / "a.wav", voice(8001), 16_000)
    assert "1 files enhanced (1 again: input or settings changed), 1 skipped" in run(folder, "-o", out)
    assert soundfile.info(out / "a.wav").frames == 8001
    assert "2 files enhanced (2 again" in run(folder, "-o", out, "--atten-lim", "6", "--report", report)
    assert {f["again"] for f in json.loads(report.read_text())["files"]} == {"other settings: atten_lim_db"}
    run(folder, "-o", out)
    assert (out / "deep" / "ü b.flac").read_bytes() == before["deep/ü b.flac"]


def test_a_job_goes_on_where_it_was_stopped(run, folder, tmp_path):
    out = tmp_path / "out"
    run(folder, "-o", out)
    whole = {name: (out / name).read_bytes() for name in tree(out)}
    lines = sorted((out / manifest.NAME).read_text().splitlines())  # a.wav first
    assert len(lines) == 2
    (out / "deep" / "ü b.flac").unlink()
    (out / manifest.NAME).write_text(lines[0] + "\n" + lines[1][:40])  # cut short while writing
    assert "1 files enhanced, 1 skipped" in run(folder, "-o", out)
    assert {name: (out / name).read_bytes() for name in tree(out)} == whole
    assert "2 skipped" in run(folder, "-o", out)


@pytest.mark.parametrize(
    "damage", ['[1]\n{"target": "a.wav"}\n', "\x00\n", "[" * 100_000 + "\n", '{"target": "a.w', "link"]
)
def test_a_damaged_manifest_means_that_outputs_are_made_again(run, folder, tmp_path, caplog, damage):
    """Without it nobody knows what they were made from: a file of 10 bytes was taken for finished."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    run(folder, "-o", out)
    whole = {name: (out / name).read_bytes() for name in tree(out)}
    (out / "a.wav").write_bytes(bytes(10))
    if damage == "link":
        (out / manifest.NAME).rename(elsewhere)
        (out / manifest.NAME).symlink_to(elsewhere)
        before = elsewhere.read_bytes()
    else:
        (out / manifest.NAME).write_text(damage)
    said = run(folder, "-o", out, "--dry-run", "-v")
    assert "a.wav: planned again (the manifest is damaged)" in said
    assert "2 files enhanced (2 again" in run(folder, "-o", out)
    assert {name: (out / name).read_bytes() for name in tree(out)} == whole
    assert len([record for record in caplog.records if "is damaged" in record.message]) == 2
    assert "2 skipped" in run(folder, "-o", out)
    assert not (out / manifest.NAME).is_symlink()
    assert damage != "link" or elsewhere.read_bytes() == before


def test_no_link_leads_out_of_the_output_folder(run, folder, tmp_path):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / "deep").symlink_to(elsewhere)
    said = run(folder, "-o", out, code=1)
    assert "deep/ü b.flac: a link leads out of the output folder" in said
    assert "1 files enhanced, 1 failed" in said
    assert list(elsewhere.iterdir()) == []
    (out / "deep").unlink()
    (out / "inside").mkdir()
    (out / "deep").symlink_to("inside")
    assert "1 files enhanced, 1 skipped" in run(folder, "-o", out)


def test_the_report_replaces_a_link_and_not_what_it_points_to(run, folder, tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "report.json").symlink_to("other")
    run(folder, "--report", tmp_path / "report.json")
    assert (tmp_path / "other").read_text() == "mine"
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["enhanced"] == 2


def test_what_is_passed_over_is_counted_by_ending(run, folder, tmp_path):
    for name in ("x.avi", "y.AVI", "deep/z.dts", "notes.txt", ".hidden.avi"):
        (folder / name).write_bytes(b"x")
    report = tmp_path / "report.json"
    said = run(folder, "--report", report)
    assert "2 files enhanced" in said
    assert "passed over: 2 .avi, 1 .dts (nothing here reads them yet; ffmpeg -i" in said
    assert json.loads(report.read_text())["summary"]["passed_over"] == {".avi": 2, ".dts": 1}
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.flv").write_bytes(b"x")
    assert "no audio files in" in (said := run(tmp_path / "only", code=2))
    assert "passed over: 1 .flv" in said
    assert "x.avi: nothing here reads them yet" in run(folder / "x.avi", "-o", tmp_path / "out", code=1)


def test_without_the_extra_one_line_counts_what_was_passed_over_and_names_it(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "has_media", lambda: False)
    for name in ("x.m4a", "y.M4A", "deep/z.mp4", "w.avi", ".hidden.webm"):
        (folder / name).write_bytes(b"x")
    said = run(folder)
    assert "2 files enhanced" in said
    assert "passed over: 1 .avi, 2 .m4a, 1 .mp4 (needs the extra: pip install -c constraints.txt -e '.[media]'" in said
    assert "'.[media]'" in run(folder / "x.m4a", "-o", tmp_path / "out", code=1)
    with pytest.raises(AudioError, match="media"):
        read(folder / "x.m4a")


@pytest.mark.linux
def test_names_of_any_bytes(run, tmp_path):
    """No UTF-8, escape sequences, line breaks: enhanced like others, and shown and reported in plain characters."""
    root, report = tmp_path / "in", tmp_path / "report.json"
    root.mkdir()
    names = [b"caf\xe9.wav", b"\x1b[31mred.wav", b"two\nlines\r.wav", b"bad\xff\x1b]0;title\x07.wav"]
    for name in names:
        path = os.fsencode(root) + b"/" + name
        if name.startswith(b"bad"):
            with open(path, "wb") as file:  # noqa: PTH123 (a name of bytes)
                file.write(b"no sound")
        else:
            soundfile.write(path, voice(2000), 16_000)
    said = run(root, "-o", tmp_path / "out", "--report", report, "-v", code=1)
    assert "caf\\udce9.wav" in said
    assert "\\x1b[31mred.wav" in said
    assert "two\\nlines\\r.wav" in said
    assert all(character.isprintable() for character in said.replace("\n", ""))
    assert all(byte == 10 or byte >= 32 for byte in report.read_bytes())
    sources = [os.fsencode(file["source"]) for file in json.loads(report.read_text())["files"]]
    assert sorted(sources) == sorted(os.fsencode(root) + b"/" + name for name in names)
    written = [os.fsencode(path.name) for path in (tmp_path / "out").iterdir()]
    assert sorted(written) == sorted([*names[:3], manifest.NAME.encode()])
    assert "3 skipped" in run(root, "-o", tmp_path / "out", code=1)
    odd = tmp_path / "\x1b[1mgone"
    assert "\x1b" not in run(odd, "-o", tmp_path / "out", code=1)
    assert "\x1b" not in run(root, "--model", odd, code=1)


def test_shards_are_all_files_once(run, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for index in range(7):
        soundfile.write(root / f"{index}.wav", voice(500), 16_000)
    for part, count in ((1, 3), (2, 2), (3, 2)):
        assert f"{count} files enhanced" in run(root, "-o", out, "--shard", f"{part}/3")
    assert len(tree(out)) == 7
    for wrong in ("0/3", "4/3", "1", "a/b", "1/2/3", "-1/2", ""):
        assert "--shard" in run(root, "--shard", wrong, code=2)


def test_a_model_that_loses_the_sound_is_reported_and_nothing_written(tmp_path):
    class Mute(nn.Module):
        def forward(self, waveform):
            return waveform * 0

    soundfile.write(tmp_path / "a.wav", voice(20_000), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(5000), 16_000)
    # above what the model hears: its silence is no fault of the weights
    soundfile.write(tmp_path / "high.wav", 0.5 * np.sin(2 * np.pi * 20_000 / 48_000 * np.arange(48_000)), 48_000)
    names = ("a.wav", "high.wav", "silent.wav")
    tasks = [layout.Task(tmp_path / name, tmp_path / "out" / name) for name in names]
    lost, high, silent = sorted(job.run(tasks, Enhancer(Mute(), "cpu")), key=lambda result: result.source)
    assert (lost.status, high.status, silent.status) == ("failed", "enhanced", "enhanced")
    assert "a.wav: the model made silence of it" in lost.error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["high.wav", "silent.wav"]


def test_an_input_is_never_replaced(run, folder):
    before = (folder / "a.wav").read_bytes()
    assert "would replace an input" in run(folder, "-o", folder, "--overwrite", code=2)
    assert "would replace an input" in run(folder / "a.wav", "-o", folder / "a.wav", "--overwrite", code=2)
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert "would replace an input" in run(folder, "-o", link, "--overwrite", code=2)
    assert (folder / "a.wav").read_bytes() == before


def test_output_inside_the_input_is_no_input_of_the_next_run(run, folder):
    for options in (["-o", folder / "out"], ["-o", folder, "--suffix", "-clean"]):
        run(folder, *options)
        first = tree(folder)
        assert "2 skipped" in run(folder, *options)
        assert tree(folder) == first
        shutil.rmtree(folder / "out", ignore_errors=True)


def test_two_inputs_for_one_output(run, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "x" / "in")
    assert "would hold both" in run(folder, other, "-o", tmp_path / "out", code=2)


def test_a_bad_file_is_named_and_the_rest_go_on(run, folder, tmp_path):
    (folder / "bad.wav").write_text("this is text")
    (folder / "empty.flac").write_bytes(b"")
    report = tmp_path / "report.json"
    output = run(folder, tmp_path / "gone.wav", "-o", tmp_path / "out", "--report", report, code=1)
    assert "bad.wav: cannot be read as sound" in output
    assert "gone.wav: no such file or folder" in output
    assert "2 files enhanced, 3 failed" in output.replace("\n", " ")
    assert len(tree(tmp_path / "out")) == 2
    content = json.loads(report.read_text())
    assert content["summary"]["failed"] == 3
    states = {os.path.basename(f["source"]): f["status"] for f in content["files"]}  # noqa: PTH119 (a plain string)
    assert states["a.wav"] == "enhanced"
    assert states["bad.wav"] == states["empty.flac"] == states["gone.wav"] == "failed"
    assert content["settings"]["backend"] == "cpu"


def test_odd_contents(run, tmp_path):
    root = tmp_path / "odd"
    root.mkdir()
    spoilt = voice(4000)
    spoilt[10:20] = np.nan
    cases = {"none": voice(0), "one": voice(1), "silence": np.zeros(5000), "dc": np.full(3000, 0.5), "nan": spoilt}
    cases["square"] = np.sign(np.sin(np.arange(8000) / 20))
    for name, samples in cases.items():
        soundfile.write(root / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    output = run(root, "-v")
    assert "nan.wav: 10 NaN or infinite samples taken as silence" in output.replace("\n", "")
    for name, samples in cases.items():
        enhanced, _ = soundfile.read(tmp_path / "odd-enhanced" / f"{name}.wav")
        assert enhanced.shape == samples.shape
        assert np.isfinite(enhanced).all()
    assert not soundfile.read(tmp_path / "odd-enhanced" / "silence.wav")[0].any()


def test_unwritable_output(run, folder, tmp_path):
    (tmp_path / "file").write_text("")
    output = run(folder, "-o", tmp_path / "file", code=1)
    assert "2 failed" in output


def test_usage_errors_are_one_line(run, folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert "no audio files in" in run(tmp_path / "nothing", code=2)
    assert "cannot run on cpu" in run(folder, "--backend", "triton", code=2)
    assert "cannot be used" in run(folder, "--device", "cuda:77", code=2)
    assert "no shipped weights for 'nobody'" in run(folder, "--model", "nobody", code=1)
    assert "Missing argument" in run(code=2)


def test_quiet_is_quiet(run, folder):
    assert run(folder, "-q") == ""


def test_bandwidth(run, tmp_path):
    """With another one the output is made again."""
    soundfile.write(tmp_path / "a.wav", noise(24_000), 48_000)
    energies = []
    for bandwidth in ("full", "16k"):
        run(tmp_path / "a.wav", "-o", tmp_path / "out", "--bandwidth", bandwidth)
        spectrum = np.fft.rfft(soundfile.read(tmp_path / "out" / "a.wav")[0])
        energies.append(np.square(np.abs(spectrum[spectrum.size * 9 // 24 :])).sum())
    assert energies[1] < 1e-5 * energies[0]
