"""Any damage to a container: a result for each file, never a crash, a hang or a wrong length, and little memory."""

import resource
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
from hypothesis import given
from hypothesis import strategies as st
from media_files import make
from test_fuzz import cases, changes, enhance, mutate

from fastenh.audio import files

KINDS = [
    (".m4a", "ipod", "aac", {}), (".m4a", "ipod", "alac", {}),
    (".mp4", "mp4", "aac", {"picture": "mpeg4", "subtitles": "mov_text", "tracks": 2}),
    (".mov", "mov", "pcm_s16le", {"picture": "mpeg4"}), (".mkv", "matroska", "libopus", {"picture": "mpeg4"}),
    (".mkv", "matroska", "aac", {"subtitles": "subrip", "tracks": 2}), (".mka", "matroska", "flac", {}),
    (".webm", "webm", "libopus", {"picture": "libvpx"}), (".wma", "asf", "wmav2", {}), (".aac", "adts", "aac", {}),
]  # fmt: skip
MEGABYTES = 400  # beyond what was used before; the decoders of FFmpeg take their share at the first call
damaged = st.tuples(st.integers(0, len(KINDS) - 1), st.lists(changes, min_size=1, max_size=4))


@cache
def content(index):
    ending, muxer, codec, more = KINDS[index]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{ending}")
        make(path, muxer, codec, 48_000, 0.3, **more)
        return path.read_bytes()


def peak():
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def any_damage(index, damage):
    """One line for what fails; what is enhanced can be read, and is as long as what could be read before."""
    name, before = f"a{KINDS[index][0]}", peak()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(mutate(content(index), damage))
        result = enhance(Path(folder), name)
        if result.status == "failed":
            assert name in result.error
            assert "\n" not in result.error
            assert len(result.error) < 500
        else:
            after = files.read(Path(folder, "out", name))[0]
            assert after.size
            assert np.isfinite(after).all()
    assert peak() - before < MEGABYTES


@cases(60)
@given(damaged)
def test_any_damage_to_a_container(case):
    any_damage(*case)


@pytest.mark.slow
@cases(6_000)
@given(damaged)
def test_any_damage_to_a_container_at_length(case):
    any_damage(*case)


@cases(40)
@given(st.integers(0, len(KINDS) - 1), st.floats(0.0, 1.0))
def test_any_cut_of_a_container(index, share):
    any_damage(index, [("cut", int(share * len(content(index))), 0)])


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"<html>" * 1000, b"\x1aE\xdf\xa3" + b"\xff" * 5000])
@pytest.mark.parametrize("ending", sorted({kind[0] for kind in KINDS}))
def test_no_container_at_all(tmp_path, content, ending):
    (tmp_path / f"a{ending}").write_bytes(content)
    result = enhance(tmp_path, f"a{ending}")
    assert result.status == "failed"
    assert f"a{ending}: " in result.error
