"""Sound files: what is read, what is written, what is refused."""

import numpy as np
import pytest
import soundfile
from conftest import noise, voice

from fastenh.audio import files
from fastenh.audio.files import AudioError
from fastenh.audio.listing import list_audio
from fastenh.audio.resampling import resample

FORMATS = [
    ("a.wav", "WAV", "PCM_16"), ("a.wav", "WAV", "PCM_U8"), ("a.wav", "WAV", "PCM_24"), ("a.wav", "WAV", "PCM_32"),
    ("a.wav", "WAV", "FLOAT"), ("a.wav", "WAV", "DOUBLE"), ("a.wav", "WAV", "ULAW"), ("a.wav", "WAVEX", "PCM_16"),
    ("a.flac", "FLAC", "PCM_16"), ("a.flac", "FLAC", "PCM_24"), ("a.aiff", "AIFF", "PCM_16"), ("a.au", "AU", "PCM_16"),
    ("a.ogg", "OGG", "VORBIS"), ("a.opus", "OGG", "OPUS"), ("a.mp3", "MP3", "MPEG_LAYER_III"),
    ("a.w64", "W64", "PCM_16"), ("a.rf64", "RF64", "PCM_16"), ("a.caf", "CAF", "PCM_16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "container", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_encoding_survives_a_round_trip(tmp_path, name, container, subtype, channels):
    original = np.stack([voice(9600, seed=c, rate=48_000) for c in range(channels)])
    soundfile.write(tmp_path / name, original.T, 48_000, format=container, subtype=subtype)
    samples, encoding = files.read(tmp_path / name)
    assert samples.shape == (channels, 9600)
    copy = tmp_path / f"copy-{name}"
    assert files.write(copy, samples, encoding) == []
    again, encoding_again = files.read(copy)
    assert again.shape == samples.shape
    assert encoding_again == encoding
    lossless = subtype not in ("VORBIS", "OPUS", "MPEG_LAYER_III")
    np.testing.assert_allclose(again, samples, atol=1e-4 if lossless else 0.2)


@pytest.mark.parametrize(
    ("container", "subtype"), [("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]
)
def test_more_than_one_block(tmp_path, container, subtype):
    samples = np.stack([voice(200_001, seed=c) for c in range(2)])
    encoding = files.Encoding(16_000, 2, container, subtype or "MPEG_LAYER_III")
    files.write(tmp_path / "a.x", samples, encoding)
    again = files.read(tmp_path / "a.x")[0]
    assert again.shape == samples.shape
    np.testing.assert_allclose(again, samples, atol=0.3)
    assert np.corrcoef(again[0], samples[0])[0, 1] > 0.98


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 96_000, 192_000])
def test_rates(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", voice(1000), rate)
    mono = files.read_mono(tmp_path / "a.wav", 16_000)
    assert abs(mono.size - 1000 * 16_000 / rate) <= 1


def test_tags_are_kept(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 16_000, 1) as file:
        file.title, file.artist = "Gespräch", "Ada"
        file.write(voice(100))
    samples, encoding = files.read(tmp_path / "a.flac")
    files.write(tmp_path / "b.flac", samples, encoding)
    assert files.read(tmp_path / "b.flac")[1].tags["title"] == "Gespräch"


@pytest.mark.parametrize("content", [b"", b"RIFF", b"hello, I am a text file\n" * 50])
def test_no_sound_is_one_line_with_the_name(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match="cannot be read as sound") as caught:
        files.read(tmp_path / "a.wav")
    assert str(tmp_path / "a.wav") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_file_gives_what_is_there(tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(1000), 16_000, subtype="PCM_16")
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[: 44 + 500])
    assert files.read(tmp_path / "a.wav")[0].shape == (1, 250)


def test_header_that_lies_about_the_channels(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((10, 100)), 16_000)
    with pytest.raises(AudioError, match="100 channels"):
        files.read(tmp_path / "a.wav")


def test_clipping_is_counted_and_does_not_wrap(tmp_path):
    encoding = files.Encoding(16_000, 1, "WAV", "PCM_16")
    warnings = files.write(tmp_path / "a.wav", np.array([[0.5, 1.5, -1.5]], np.float32), encoding)
    assert warnings == ["2 samples clipped at full scale"]
    np.testing.assert_allclose(soundfile.read(tmp_path / "a.wav")[0], [0.5, 1.0, -1.0], atol=1e-4)
    floats = files.Encoding(16_000, 1, "WAV", "FLOAT")
    assert files.write(tmp_path / "b.wav", np.array([[1.5]], np.float32), floats) == []


def test_what_the_container_cannot_hold(tmp_path):
    with pytest.raises(AudioError, match="44100 Hz"):
        files.write(tmp_path / "a.opus", np.zeros((1, 100), np.float32), files.Encoding(44_100, 1, "OGG", "OPUS"))
    assert list(tmp_path.iterdir()) == []  # no half-written file, no temporary one
    warnings = files.write(
        tmp_path / "a.flac", np.zeros((1, 100), np.float32), files.Encoding(16_000, 1, "FLAC", "FLOAT")
    )
    assert "PCM_16 taken" in warnings[0]


def test_listing(tmp_path):
    for name in ("b.wav", "A.FLAC", "notes.txt", ".hidden.wav", "deep/er/c.mp3", "out/d.wav", "out/.nomedia"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    listed = [path.relative_to(tmp_path).as_posix() for path in list_audio(tmp_path)]
    assert listed == ["A.FLAC", "b.wav", "deep/er/c.mp3"]
    assert [p.name for p in list_audio(tmp_path / "out")] == ["d.wav"]  # asked for by name


def test_resampling_keeps_time_and_level():
    tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)[None].astype(np.float32)
    back = resample(resample(tone, 48_000, 16_000), 16_000, 48_000, length=48_000)
    assert back.shape == tone.shape
    np.testing.assert_allclose(back[:, 1000:-1000], tone[:, 1000:-1000], atol=1e-3)
    assert resample(noise(0)[None], 8000, 16_000, length=5).shape == (1, 5)
