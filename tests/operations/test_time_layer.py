"""A layer along time behind its taps: in one launch where it is narrow and windows are as they ship."""

import pytest
import torch
from parity import check, kernel_of, layer_weights, randn, reference_of

import fastenh_kernels
from fastenh_kernels import AxisLayerWeights
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


def taps(channels=64, count=7):
    return 1 + 0.5 * randn(channels), randn(channels), 0.4 * randn(channels, count), randn(channels)


def flat(function, ahead=3, history=0, folded=False):
    """As a function of x, the four of the taps and the twelve of the layer."""
    return lambda x, *w: function(x, w[:4], AxisLayerWeights(*w[4:]), 2, ahead, history, folded)


def compare(x, weights, target, ahead=3, history=0):
    """The kernel folds the weights of the layer, or takes them folded."""
    plain = flat(reference_of("time_layer"), ahead, history)
    check(flat(kernel_of("time_layer"), ahead, history), plain, (x, *weights), target)
    prepared = *weights[:4], *AxisLayerWeights(*weights[4:]).folded()
    check(flat(kernel_of("time_layer"), ahead, history, True), plain, (x, *prepared), target)


def test_is_taps_and_then_a_layer():
    torch.manual_seed(0)
    x, of_taps, weights = randn(2, 9, 3, 16), taps(16), AxisLayerWeights(*layer_weights(16, 32))
    near = fastenh_kernels.norm_taps(x, *of_taps, 3)
    for history in (0, 4):
        ours = fastenh_kernels.time_layer(x, of_taps, weights, 2, 3, history)
        torch.testing.assert_close(ours, fastenh_kernels.axis_layer(near, weights, 2, "time", 0.0, history))


@pytest.mark.parametrize(
    ("clips", "frames", "bands", "count", "ahead", "history", "whole"),
    [
        (1, 256, 1, 7, 3, 0, True),
        (2, 256, 1, 7, 0, 0, True),
        (1, 256, 1, 4, 3, 0, True),
        (1, 40, 2, 7, 3, 0, False),
        (1, 20, 1, 7, 0, 5, False),
    ],
)
def test_kernel(target, monkeypatch, clips, frames, bands, count, ahead, history, whole):
    """One launch in 16 bit, whose programs take sequence after sequence."""
    torch.manual_seed(0)
    kernel_of("time_layer")
    from fastenh_kernels.operations.time_layer import forward

    launched = []
    for name in ("launch_narrow_time", "launch_norm_taps"):
        monkeypatch.setattr(forward, name, recorded(getattr(forward, name), launched))
    monkeypatch.setattr(forward, "processors", lambda device: 1)
    weights = *taps(count=count), *layer_weights(64, 128)
    compare(randn(clips, frames, bands, 64), weights, target, ahead, history)
    assert launched == 2 * ["launch_narrow_time" if whole and target[1] != torch.float32 else "launch_norm_taps"]


def recorded(function, calls):
    def called(*arguments):
        calls.append(function.__name__)
        return function(*arguments)

    return called


def test_large_means_and_norms(target):
    """What is folded into matrices is far from 1 and 0, and rows are far from 0."""
    torch.manual_seed(0)
    weights = layer_weights(64, 128)
    for number, factor in ((0, 3.0), (1, 2.0), (2, 3.0), (3, 4.0), (6, 3.0), (7, 2.0)):
        weights[number] = weights[number] * factor
    compare(20 + randn(1, 256, 1, 64), (*taps(), *weights), target)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("factor", [1.0, 0.1, 12.0])
def test_scores_beyond_the_range_of_their_powers(target, monkeypatch, factor):
    """In bfloat16, and here in float16 with a narrower range. Scores are moderate, nearly equal, or in the hundreds:
    only the last ones must be taken again, less the largest of their row."""
    torch.manual_seed(0)
    kernel_of("time_layer")
    from fastenh_kernels.operations.time_layer import forward

    monkeypatch.setattr(forward, "_MOST", {torch.float16: 2.0**11} | forward._MOST)
    weights = layer_weights(64, 128)
    weights[2] = torch.cat([factor * weights[2][:128], weights[2][128:]])
    compare(randn(1, 256, 1, 64), (*taps(), *weights), target)


def test_no_clips(interpreted):
    given = randn(0, 256, 2, 64), taps(), AxisLayerWeights(*layer_weights(64, 128)), 2, 3
    assert kernel_of("time_layer")(*given).shape == (0, 256, 2, 64)


def test_what_the_kernels_do_not_serve_goes_to_the_reference(interpreted):
    operation = OPERATIONS["time_layer"]
    for width, count in ((32, 7), (64, 9)):
        given = randn(1, 2, 3, width), taps(width, count), AxisLayerWeights(*layer_weights(width, 64)), 2, 0, 0
        assert operation.serves(*given)
        assert operation.pick(*given) is operation.reference


def test_rules_of_torch(interpreted):
    kernel_of("time_layer")
    from fastenh_kernels.operations.time_layer.forward import time_layer_operator

    given = randn(1, 3, 2, 64), list(taps()), layer_weights(64, 128), 2, 3, 0, False
    torch.library.opcheck(time_layer_operator, given, test_utils=("test_schema", "test_faketensor"))
