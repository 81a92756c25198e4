"""Lengths: what header, size of the file and decoder say. Nothing is lost without a word."""

import struct

import numpy as np
import pytest
import soundfile
from conftest import noise, voice

from fastenh.audio import files
from fastenh.audio.files import AudioError

RATE, FRAMES = 16_000, 160_000


def sound(path, subtype=None, frames=FRAMES):
    opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {"subtype": subtype}
    soundfile.write(path, voice(frames) + noise(frames, scale=0.01), RATE, **opus)
    return path


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def read(path):
    """(frames, warnings)."""
    with files.reading(path) as reader:
        return sum(block.shape[1] for block in reader.blocks()), reader.warnings


WHOLE = [
    ("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "IMA_ADPCM"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS"),
    ("a.opus", "OPUS"), ("a.mp3", None), ("a.aiff", "PCM_16"), ("a.au", "PCM_16"), ("a.au", "ULAW"),
    ("a.caf", "PCM_16"), ("a.w64", "PCM_16"), ("a.rf64", "FLOAT"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "subtype"), WHOLE)
@pytest.mark.parametrize("frames", [FRAMES, 100])
def test_a_whole_file_gives_no_warning(tmp_path, name, subtype, frames):
    assert read(sound(tmp_path / name, subtype, frames))[1] == []


CUT = ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64"]


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.99])
def test_a_cut_file_is_salvaged_with_a_warning(tmp_path, name, share):
    frames, warnings = read(cut(sound(tmp_path / name), share))
    assert (share - 0.15) * FRAMES < frames < FRAMES
    assert len(warnings) == 1, warnings


def test_what_lies_before_the_cut_of_a_flac_is_the_sound(tmp_path):
    whole = files.read(sound(tmp_path / "a.flac"))[0]
    kept = files.read(cut(tmp_path / "a.flac", 0.7))[0]
    assert kept.shape[1] > 0.6 * FRAMES
    np.testing.assert_array_equal(kept, whole[:, : kept.shape[1]])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "ULAW", "FLOAT"])
def test_what_is_left_of_a_cut_caf_is_the_sound(tmp_path, subtype):
    whole = files.read(sound(tmp_path / "a.caf", subtype))[0]
    kept = files.read(cut(tmp_path / "a.caf", 0.7))[0]
    assert 0.65 * FRAMES < kept.shape[1] < 0.7 * FRAMES
    np.testing.assert_array_equal(kept, whole[:, : kept.shape[1]])


def test_a_caf_that_lacks_one_byte(tmp_path):
    path = sound(tmp_path / "a.caf")
    path.write_bytes(path.read_bytes()[:-1])
    assert read(path) == (FRAMES - 1, ["the header says 320,004 bytes of sound, 320,003 were there"])


def test_a_caf_whose_recorder_did_not_go_back_to_its_header(tmp_path):
    """Its sound has the size -1, up to the end of the file: whole, and no warning."""
    path = sound(tmp_path / "a.caf")
    content = path.read_bytes()
    place = content.index(b"data") + 4
    path.write_bytes(content[:place] + struct.pack(">q", -1) + content[place + 8 :])
    assert read(path) == (FRAMES, [])


def test_a_cut_caf_of_alac_is_a_failure(tmp_path):
    with pytest.raises(AudioError, match=r"the file was cut: [\d,]+ of [\d,]+ bytes of ALAC are there"):
        read(cut(sound(tmp_path / "a.caf", "ALAC_16"), 0.5))


NOTHING_LEFT = {
    "a.flac": "but no sound can be read",
    "a.mp3": "damaged, or of a kind that libsndfile does not know",
    "a.ogg": "the file was cut before the end of its first page of sound",
    "a.opus": "the file was cut before the end of its first page of sound",
    "a.caf": "the file was cut before its sound",
}


@pytest.mark.parametrize("name", NOTHING_LEFT)
def test_a_file_of_which_nothing_is_left_is_a_failure(tmp_path, name):
    with pytest.raises(AudioError, match=f"{name}: .*{NOTHING_LEFT[name]}"):
        read(cut(sound(tmp_path / name), 0.01))


def test_a_file_cut_where_its_sound_begins_is_a_failure(tmp_path):
    """libsndfile opens it, and finds no frames."""
    path = sound(tmp_path / "a.caf")
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(AudioError, match="4,096 bytes, but no sound can be read"):
        read(path)
    content = sound(tmp_path / "a.ogg").read_bytes()
    path = tmp_path / "a.ogg"
    path.write_bytes(content[: content.index(b"OggS", content.index(b"OggS", 1) + 1) + 40])
    with pytest.raises(AudioError, match="bytes, but no sound can be read"):
        read(path)


def test_a_header_that_counts_in_31_bits(tmp_path):
    """libsndfile takes the length of an .au beyond 2 GB for negative, and finds no frames."""
    path, size = tmp_path / "a.au", 3_000_000_000
    with path.open("wb") as file:  # sparse
        file.write(struct.pack(">4sIIIII4x", b".snd", 28, size, 3, RATE, 1))
        file.truncate(28 + size)
    with pytest.raises(AudioError, match="3,000,000,028 bytes, but no sound can be read"):
        read(path)


def test_a_wav_header_that_says_too_little(tmp_path):
    path = with_sizes(sound(tmp_path / "a.wav", "PCM_16"), 2 * FRAMES + 36, 2000)
    assert read(path) == (1000, [f"the header says 1000 frames, the file has room for {FRAMES + 22}"])


def test_a_wav_header_that_says_nothing(tmp_path):
    """As programs leave it that were stopped: taken where libsndfile knows the form, a failure elsewhere."""
    path = with_sizes(sound(tmp_path / "a.wav", "PCM_16"), 8, 0)
    assert read(path) == (FRAMES, ["header and file disagree about the length: what is there was taken"])
    with pytest.raises(AudioError, match="320,044 bytes, but no sound"):
        read(with_sizes(path, 36, 0))


def with_sizes(path, riff, data):
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    path.write_bytes(content)
    return path


def test_an_mp3_header_that_says_too_much(tmp_path):
    path = cut(sound(tmp_path / "a.mp3"), 0.2)
    frames, warnings = read(path)
    assert warnings == [f"the header says {FRAMES} frames, {frames} were there"]


def test_empty_recordings_are_no_failure(tmp_path):
    for name in ("a.wav", "a.ogg", "a.caf", "a.aiff", "a.au"):
        assert read(sound(tmp_path / name, frames=0)) == (0, [])


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM"])
def test_adpcm_of_blocks_that_we_do_not_write_keeps_its_length(tmp_path, subtype):
    """87,548 frames are 43 blocks of another program: libsndfile's own do not fit into them."""
    encoding = files.Encoding(RATE, 1, "WAV", subtype)
    with files.writing(tmp_path / "a.wav", encoding, frames=87_548) as writer:
        writer.write(voice(87_548)[None])
    assert writer.warnings == [f"WAV cannot be written as {subtype} in this length (it comes in blocks): PCM_16 taken"]
    assert soundfile.info(tmp_path / "a.wav").frames == 87_548
    with files.writing(tmp_path / "b.wav", encoding, frames=1012 * 1017) as writer:
        writer.write(voice(1012 * 1017)[None])
    assert soundfile.info(tmp_path / "b.wav").subtype == subtype


def test_a_name_that_is_no_utf_8(tmp_path):
    path = tmp_path / b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    files.write(path, voice(1000)[None], files.Encoding(RATE, 1, "WAV", "PCM_16"))
    assert files.read(path)[0].shape == (1, 1000)
    with pytest.raises(AudioError, match="No such file or directory"):
        files.read(path.with_suffix(".flac"))
