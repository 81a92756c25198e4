"""From pipe to pipe: the sound of the file commands, as it comes, in little memory."""

import io
import os
import queue
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import SAMPLES, noise, voice
from torch import nn

from fastenh import Enhancer
from fastenh.audio import pipes
from fastenh.audio.files import AudioError, Encoding
from fastenh.cli import main
from fastenh.enhance import pipe

_BEHIND = 16  # seconds that the output is behind the input, at the most


class Half(nn.Module):
    def forward(self, waveform):
        return 0.5 * waveform


def through(content, raw=None, span=0.3, **options):
    """What comes out of ``pipe.run`` for ``content``, and its warnings."""
    (source, given), (taken, target) = os.pipe(), os.pipe()
    received = []

    def give():
        with os.fdopen(given, "wb") as file:
            file.write(content)

    def take():
        with os.fdopen(taken, "rb") as file:
            received.append(file.read())

    threads = [threading.Thread(target=work) for work in (give, take)]
    for thread in threads:
        thread.start()
    try:
        warnings = pipe.run(source, target, Enhancer(Half(), "cpu", span_seconds=span), raw, **options)
    finally:
        os.close(target)
        os.close(source)
        for thread in threads:
            thread.join()
    return received[0], warnings


def wav(signal, rate, subtype="PCM_16", container="WAV"):
    file = io.BytesIO()
    soundfile.write(file, signal, rate, subtype, format=container)
    return file.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_wav_in_and_wav_out(subtype, rate):
    signal = np.stack([voice(60_001, seed, rate) + noise(60_001, seed, 0.1) for seed in range(2)], 1)
    output, warnings = through(wav(signal, rate, subtype))
    after, rate_after = soundfile.read(io.BytesIO(output))
    info = soundfile.info(io.BytesIO(output))
    assert (warnings, rate_after, info.subtype, info.format) == ([], rate, subtype, "WAV")
    assert after.shape == signal.shape
    np.testing.assert_allclose(after, 0.5 * signal, atol=2e-2 if subtype in ("PCM_U8", "ULAW", "ALAW") else 2e-4)


@pytest.mark.parametrize("kind", list(pipes.RAW_FORMATS))
def test_samples_without_a_header(kind):
    signal = voice(30_000) + noise(30_000, scale=0.1)
    content = wav(signal, 16_000, pipes.RAW_FORMATS[kind], "RAW")
    output, warnings = through(content, pipes.Raw(16_000, 1, kind))
    assert (len(output), warnings) == (len(content), [])
    form = {"samplerate": 16_000, "channels": 1, "subtype": pipes.RAW_FORMATS[kind], "format": "RAW"}
    after, _ = soundfile.read(io.BytesIO(output), endian="LITTLE", **form)
    np.testing.assert_allclose(after, 0.5 * signal, atol=2e-2 if kind in ("u8", "s8", "mulaw", "alaw") else 1e-4)


@pytest.mark.parametrize("size", [0, 2**31 - 1, 2**32 - 1])
def test_a_header_without_a_length(size):
    """As of programs that write to a pipe themselves: the sound ends where it ends, and so does the output."""
    samples = (voice(20_000) * 32767).astype("<i2").tobytes()
    head = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    output, warnings = through(head + b"data" + struct.pack("<I", size) + samples)
    if size == 0:  # and nothing else is what it says
        assert len(output) == 44
        return
    assert warnings == []
    assert output[40:44] == b"\xff" * 4
    after = np.frombuffer(output[44:], "<i2")
    np.testing.assert_allclose(after, 0.5 * np.frombuffer(samples, "<i2"), atol=2)


def test_a_pipe_that_ends_early_is_said():
    content = wav(voice(30_000), 16_000)
    output, warnings = through(content[: 44 + 20_000])
    assert warnings == ["the header says 30000 frames, 10000 were there"]
    assert len(output) == 44 + 20_000


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"RIFF", wav(voice(1000), 16_000, None, "FLAC")])
def test_no_wav_is_one_line(content):
    with pytest.raises(AudioError, match="standard input: no WAV"):
        through(content)


def test_clipping_and_formats_that_a_pipe_has_not():
    output, warnings = through(wav(3 * noise(20_000, scale=1.0), 16_000, "FLOAT"))
    assert warnings == []
    assert np.abs(soundfile.read(io.BytesIO(output))[0]).max() > 1
    output, warnings = through(wav(voice(20_000), 16_000, "IMA_ADPCM"))
    assert warnings[0] == "a pipe cannot be written as IMA_ADPCM: PCM_16 taken"


@pytest.mark.parametrize("frames", [0, 1, 1000, 2**31])
def test_headers_are_those_of_libsndfile(frames):
    for subtype, width in (("PCM_16", 2), ("FLOAT", 4)):
        head = pipes.header(Encoding(44_100, 2, "WAV", subtype), frames)
        info = soundfile.info(io.BytesIO(head + bytes(4 * width)))
        assert (info.samplerate, info.channels, info.subtype) == (44_100, 2, subtype)
        known = 0 < frames * 2 * width < 2**32 - 37
        assert struct.unpack("<I", head[-4:])[0] == (frames * 2 * width if known else 2**32 - 1)


def command(*options):
    return [sys.executable, "-m", "fastenh", "enhance", "-", "-o", "-", "--dtype", "float32", *options]


def test_the_command(tmp_path):
    """Equal to the file command, sample by sample; nothing but sound on standard output, which may be a file."""
    source, target = tmp_path / "a.wav", tmp_path / "out.wav"
    soundfile.write(source, voice(100_000) + noise(100_000), 16_000)
    with source.open("rb") as given, target.open("wb") as taken:
        subprocess.run(command(), stdin=given, stdout=taken, check=True)
    piped = subprocess.run(command(), input=source.read_bytes(), capture_output=True, check=True).stdout
    assert target.read_bytes() == piped
    CliRunner().invoke(main, ["enhance", str(source), "--dtype", "float32"])
    expected, _ = soundfile.read(tmp_path / "a-enhanced.wav")
    np.testing.assert_allclose(soundfile.read(target)[0], expected, atol=1e-4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_a_full_disk_behind_standard_output_is_one_line():
    command = [sys.executable, "-m", "fastenh", "enhance", "-", "-o", "-"]
    with (SAMPLES / "portuguese-pink.wav").open("rb") as given, open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(command, stdin=given, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "standard output: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_without_sound_has_exit_code_1(monkeypatch):
    def run(*_):
        with pipes.reading(os.open(os.devnull, os.O_RDONLY)):
            pass

    monkeypatch.setattr(pipe, "run", run)
    done = CliRunner().invoke(main, ["enhance", "-", "-o", "-"])
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: standard input: no WAV .*\n", done.output)


def test_wrong_usage_of_a_pipe(tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(1000), 16_000)
    for arguments in (["-"], [str(tmp_path / "a.wav"), "-o", "-"], ["-", str(tmp_path / "a.wav"), "-o", "-"]):
        done = CliRunner().invoke(main, ["enhance", *arguments])
        assert done.exit_code == 2
        assert "a pipe goes to a pipe" in done.output
    assert CliRunner().invoke(main, ["enhance", "-", "-o", "-", "--raw", "16000", "1", "s17"]).exit_code == 2


@pytest.mark.slow
def test_sound_goes_out_while_it_comes_in_and_memory_is_flat():
    """At the pace of the sound: seconds behind, and as much memory for ten minutes as for one."""
    peaks = []
    for minutes in (1, 10):
        wrapped = (
            "import resource, sys; from fastenh.cli import main\n"
            "try: main(sys.argv[1:], standalone_mode=False)\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        line = [sys.executable, "-c", wrapped, *command("--raw", "16000", "1", "s16le")[3:]]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            block, received = (voice(16_000) * 32767).astype("<i2").tobytes(), queue.Queue()

            def take(output=process.stdout, received=received):
                while piece := output.read(2 * 16_000):
                    received.put(len(piece))

            reader = threading.Thread(target=take)
            reader.start()
            for _ in range(_BEHIND):
                process.stdin.write(block)
                process.stdin.flush()
            assert received.get(timeout=60) == 2 * 16_000  # the first second has come out
            for _ in range(60 * minutes - _BEHIND):
                process.stdin.write(block)
            process.stdin.close()
            reader.join()
            assert sum(received.get() for _ in range(received.qsize())) == 2 * 16_000 * (60 * minutes - 1)
            peaks.append(int(process.stderr.read().split()[-1]))
    assert peaks[1] < peaks[0] + 20_000
