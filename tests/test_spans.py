"""Windows, seams, and the arithmetic between them."""

from itertools import pairwise

import numpy as np
import pytest

from fastenh.enhance.spans import Cutter, Joiner, Spans

SPANS = [
    Spans(16, 8, 4),
    Spans(16, 8, 16, grain=8),
    Spans(7, 0, 0, grain=3),
    Spans(10, 3, 6, grain=100),
    Spans(2, 30, 2, grain=5),
    Spans(1, 0, 0),
]


def pass_through(spans, recording, block, change=lambda window: window):
    """Cut and join, with ``change`` as the model. Returns (output, (start, end) of the windows)."""
    cutter, joiner = Cutter(spans, recording.shape[0]), Joiner(spans)
    pieces, windows = [recording[:, :0]], []
    for first in range(0, recording.shape[1], block):
        for window in cutter.feed(recording[:, first : first + block]):
            windows.append((spans.span * len(windows), spans.span * len(windows) + window.shape[1]))
            pieces.append(joiner.feed(change(window)))
    last = cutter.finish()
    if last is not None:
        windows.append((last[0], last[0] + last[1].shape[1]))
        pieces.append(joiner.feed(change(last[1]), last[0]))
    return np.concatenate(pieces, axis=1), windows


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("block", [1, 5, 10_000])
def test_every_length_comes_back_exactly(spans, block):
    rng = np.random.default_rng(0)
    for length in range(4 * spans.window):
        recording = rng.standard_normal((2, length)).astype(np.float32)
        output, windows = pass_through(spans, recording, block)
        assert output.shape == recording.shape
        np.testing.assert_allclose(output, recording, atol=1e-6)
        assert windows == spans.windows(length)


@pytest.mark.parametrize("spans", SPANS)
def test_only_the_last_window_has_another_length(spans):
    for length in range(1, 6 * spans.window):
        *whole, (start, end) = spans.windows(length)
        assert all(end - start == spans.window for start, end in whole)
        assert end == length
        if not whole:
            assert (start, length) == (0, min(length, spans.longest))
        elif start > whole[-1][0]:  # else it may reach back no further
            assert spans.window <= length - start < spans.longest + spans.grain
            assert (length - start - spans.window) % spans.grain == 0


def test_windows_have_context_on_both_sides_of_what_is_kept():
    spans = Spans(16, 8, 4)
    for length in range(spans.longest + 1, 200):
        windows = spans.windows(length)
        assert len(windows) > 1
        for index, ((_, end_before), (start, _)) in enumerate(pairwise(windows), start=1):
            boundary = index * spans.span + spans.context
            assert boundary - start >= spans.context
            assert end_before - boundary == spans.context


def test_a_recording_of_one_window_is_reflected_to_one_of_a_few_lengths():
    spans = Spans(16, 8, 4, grain=5)
    for length in range(1, spans.longest + 1):
        recording = np.arange(2 * length, dtype=np.float32).reshape(2, length)
        reflected = spans.reflected(recording)
        np.testing.assert_array_equal(reflected[:, :length], recording)
        more = reflected.shape[1] - length
        if length < 3 * 5:
            assert more == 0
        else:
            assert 0 <= more < 5
            assert (reflected.shape[1] - spans.window) % 5 == 0
            np.testing.assert_array_equal(reflected[:, length:], recording[:, length - 1 - more : length - 1][:, ::-1])


def test_seams_fade_between_neighbours():
    """Windows that come back with levels of their own: the output goes from one to the next in a straight line."""
    spans = Spans(100, 50, 20)
    levels = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    ones = np.ones((1, 700), np.float32)
    output, _ = pass_through(spans, ones, 700, change=lambda window: window * next(levels))
    assert output[0, 0] == 1.0
    assert output[0, -1] == 5.0
    steps = np.abs(np.diff(output[0]))
    assert steps.max() <= 1 / spans.fade + 1e-6
    middle = output[0, 100 + 50 - 10 : 100 + 50 + 10]  # the fade between window 0 and 1 lies around sample 150
    np.testing.assert_allclose(middle, 1 + (np.arange(20) + 0.5) / 20, atol=1e-6)


@pytest.mark.parametrize(("span", "context", "fade"), [(0, 1, 0), (10, -1, 0), (10, 2, 6), (10, 5, 3), (4, 5, 6)])
def test_impossible_spans(span, context, fade):
    with pytest.raises(ValueError, match=r"span|fade"):
        Spans(span, context, fade)
