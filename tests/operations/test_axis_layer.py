"""The transformer layer along one axis: formulas, tiles for processors, kernels, gradients, dropout."""

import pytest
import torch
from dropout_again import DROPOUT, SEED, layer_with_masks
from parity import (
    RULES,
    as_double,
    check,
    check_gradients,
    kernel_of,
    layer_weights,
    randn,
    reference_of,
    relative,
    rounded,
    textbook_layer,
    twice,
)
from torch.utils._python_dispatch import TorchDispatchMode

import fastenh_kernels
from fastenh_kernels import AxisLayerWeights, backend
from fastenh_kernels.operation import OPERATIONS
from fastenh_kernels.operations.axis_layer import cpu
from fastenh_kernels.shared import processors

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
AXES = pytest.mark.parametrize("axis", ["frequency", "time"])
F64 = torch.float64


def kernel(axis, heads=2, history=0):
    return lambda x, *weights: kernel_of("axis_layer")(x, AxisLayerWeights(*weights), heads, axis, 0.0, history)


def plain(axis, heads=2, history=0):
    return lambda x, *weights: reference_of("axis_layer")(x, AxisLayerWeights(*weights), heads, axis, 0.0, history)


def dropping(axis, seed):
    """The operator that keeps what its gradient needs, with a seed of our own."""
    kernel_of("axis_layer")
    from fastenh_kernels.operations.axis_layer.forward import axis_layer_forward

    return lambda x, *weights: axis_layer_forward(x, weights, 2, axis, DROPOUT, seed, 0)[0]


@AXES
@pytest.mark.parametrize(("b", "t", "f"), [(1, 1, 1), (2, 17, 2), (1, 2, 65), (3, 5, 63)])
def test_it_is_the_textbook_encoder_layer(axis, b, t, f):
    torch.manual_seed(0)
    w = AxisLayerWeights(*(tensor.double() for tensor in layer_weights(16, 24)))
    x = torch.randn(b, t, f, 16, dtype=F64)
    sequences = x if axis == "frequency" else x.transpose(1, 2)
    expected = textbook_layer(w, 4)(sequences.flatten(0, 1)).view(sequences.shape)
    expected = expected if axis == "frequency" else expected.transpose(1, 2)
    torch.testing.assert_close(fastenh_kernels.axis_layer(x, w, 4, axis), expected)


@pytest.mark.parametrize("history", [1, 3, 40])
def test_history(history):
    """A frame sees itself and those before it, as many as are asked for: what is outside changes nothing."""
    w = AxisLayerWeights(*(tensor.double() for tensor in layer_weights(16, 24)))
    x = torch.randn(1, 9, 2, 16, dtype=F64)
    whole = fastenh_kernels.axis_layer(x, w, 2, "time", 0.0, history)
    first = max(0, 6 - history + 1)
    alone = fastenh_kernels.axis_layer(x[:, first:7], w, 2, "time", 0.0, history)
    torch.testing.assert_close(whole[:, 6], alone[:, -1])


@pytest.mark.parametrize(
    ("bias", "masks"), [("out_bias", 1), ("down_bias", 1), ("up_bias", 2)], ids=["attention", "feed-forward", "hidden"]
)
def test_branches_and_hidden_units_are_dropped(bias, masks):
    """All weights but one bias are 0, so a branch is this bias of 1 behind the dropouts on its way."""
    zeros = AxisLayerWeights(*(torch.zeros_like(tensor, dtype=F64) for tensor in layer_weights(16, 16)))
    down = torch.eye(16, dtype=F64) if bias == "up_bias" else zeros.down_weight
    weights = zeros._replace(**{"down_weight": down, bias: torch.ones(16, dtype=F64)})
    added = fastenh_kernels.axis_layer(torch.zeros(2, 20, 30, 16, dtype=F64), weights, 2, "time", 0.25)
    kept = 0.75**masks
    torch.testing.assert_close(added[added != 0].unique(), torch.tensor([1 / kept], dtype=F64))
    assert (added != 0).double().mean().item() == pytest.approx(kept, abs=0.02)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("fused", [True, False])
@AXES
@pytest.mark.parametrize(("clips", "frames", "bands"), [(1, 1, 1), (2, 40, 65), (3, 33, 7), (0, 5, 5)])
def test_on_a_processor(monkeypatch, dtype, fused, axis, clips, frames, bands):
    torch.manual_seed(0)
    if not fused:
        monkeypatch.setattr(processors, "fuses", lambda dtype: False)
    weights = layer_weights(16, 32)
    weights[2] *= 10  # scores far enough apart for attention to choose
    weights = [tensor.to(dtype) for tensor in weights]
    x = torch.randn(clips, frames, bands, 16, dtype=F64).to(dtype)
    before = x.clone()
    with torch.inference_mode():
        given = cpu.axis_layer(x, AxisLayerWeights(*weights), 2, axis, 0.0, 0)
    assert given.shape == x.shape
    assert given.dtype == dtype
    assert torch.equal(x, before)
    if clips:
        assert relative(given, plain(axis)(x.double(), *(w.double() for w in weights))) < TOLERANCE[dtype]


@AXES
def test_scores_of_any_size_on_a_processor(axis):
    """Exponentials in bfloat16 that would be infinite, or all of them zero, and those of another tile that are not."""
    torch.manual_seed(0)
    weights = layer_weights(16, 32)
    weights[3][:] = 0
    for own, other in ((40, 40), (40, -40), (0, 0)):
        weights[3][0], weights[3][16] = own, other
        rounded = [tensor.bfloat16() for tensor in weights]
        x = torch.randn(1, 40, 7, 16).bfloat16()
        with torch.inference_mode():
            given = cpu.axis_layer(x, AxisLayerWeights(*rounded), 2, axis, 0.0, 0)
        assert relative(given, plain(axis)(x.double(), *(w.double() for w in rounded))) < TOLERANCE[torch.bfloat16]


@AXES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_far_from_zero_on_a_processor(axis, dtype):
    """What a layer adds to rows whose mean is many times their deviation, as exact as such rows allow."""
    torch.manual_seed(0)
    weights = [tensor.to(dtype) for tensor in layer_weights(16, 32)]
    x = (10 + torch.randn(1, 40, 7, 16)).to(dtype)
    with torch.inference_mode():
        given = cpu.axis_layer(x, AxisLayerWeights(*weights), 2, axis, 0.0, 0).double()
    exact = plain(axis)(x.double(), *(w.double() for w in weights))
    assert (given - exact).norm() / (exact - x.double()).norm() < 10 * torch.finfo(dtype).eps


@AXES
def test_gradient_on_a_processor(axis):
    def ours(x, *weights):
        return cpu.axis_layer(x, AxisLayerWeights(*weights), 2, axis, 0.0, 0)

    check_gradients(ours, plain(axis), (randn(2, 5, 7, 16), *layer_weights(16, 32)), ("cpu", torch.float32))


def test_a_clip_gives_the_same_in_any_batch():
    torch.manual_seed(0)
    weights, x = AxisLayerWeights(*layer_weights(16, 32)), torch.randn(3, 50, 65, 16)
    with torch.inference_mode():
        for axis in ("frequency", "time"):
            together = cpu.axis_layer(x, weights, 2, axis, 0.0, 0)
            for number in range(3):
                alone = cpu.axis_layer(x[number : number + 1], weights, 2, axis, 0.0, 0)
                assert torch.equal(together[number : number + 1], alone)


def test_weights_that_change_are_folded_again():
    """A processor keeps what it made of weights that are not trained."""
    weights, x = AxisLayerWeights(*(tensor.detach() for tensor in layer_weights(16, 32))), torch.randn(1, 5, 7, 16)
    for change in (lambda: None, lambda: weights.qkv_weight.mul_(3), lambda: weights.norm2_bias.add_(1)):
        with torch.no_grad():
            change()
            given = cpu.axis_layer(x, weights, 2, "frequency")
            plain = AxisLayerWeights(*(tensor.clone() for tensor in weights))
            assert torch.equal(given, cpu.axis_layer(x, plain, 2, "frequency"))


def test_autocast_decides_the_dtype():
    x, weights = torch.randn(1, 8, 5, 16), AxisLayerWeights(*layer_weights(16, 32))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert cpu.axis_layer(x, weights, 2, "time", 0.0, 0).dtype == torch.bfloat16


@AXES
@pytest.mark.parametrize(
    ("b", "t", "f"),
    [
        (1, 1, 1),
        (2, 3, 2),
        (1, 1, 65),
        (1, 17, 2),
        (1, 64, 2),
        (1, 125, 1),
        pytest.param(2, 2, 188, marks=pytest.mark.slow),
    ],
)
def test_kernel(target, axis, b, t, f):
    torch.manual_seed(0)
    check(kernel(axis), plain(axis), (randn(b, t, f, 64), *layer_weights(64, 128)), target)


def test_folded_weights_make_the_same_layer():
    torch.manual_seed(0)
    weights = AxisLayerWeights(*layer_weights(16, 32))
    folded, x = weights.folded(), randn(2, 3, 5, 16)
    for plain in (folded.norm1_weight - 1, folded.norm2_weight - 1, folded.qkv_bias, folded.up_bias):
        assert not plain.any()
    for axis in ("frequency", "time"):
        ours = fastenh_kernels.axis_layer(x, folded, 2, axis, folded=True)
        torch.testing.assert_close(ours, fastenh_kernels.axis_layer(x, weights, 2, axis), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("axis", "t", "f"), [("frequency", 2, 65), ("frequency", 3, 32), ("time", 17, 2), ("time", 60, 1)]
)
def test_kernel_of_folded_weights(target, axis, t, f):
    """It leaves out the norms' weights and biases and the biases behind them."""
    torch.manual_seed(0)
    folded = AxisLayerWeights(*layer_weights(64, 128)).folded()

    def ours(x, *w):
        return kernel_of("axis_layer")(x, AxisLayerWeights(*w), 2, axis, 0.0, 0, True)

    check(ours, plain(axis), (randn(1, t, f, 64), *folded), target)


@pytest.mark.parametrize(("b", "t", "f", "whole"), [(2, 3, 32, True), (1, 5, 32, True), (1, 2, 16, False)])
def test_a_narrow_layer(target, monkeypatch, b, t, f, whole):
    """In 16 bit it is one launch; programs take block after block, the last of which may end early."""
    torch.manual_seed(0)
    given = kernel("frequency")
    from fastenh_kernels.operations.axis_layer import forward, narrow

    launched = []
    for module, name in ((narrow, "launch_narrow"), (forward, "launch_norm_linear")):
        monkeypatch.setattr(module, name, recorded(getattr(module, name), launched))
    monkeypatch.setattr(narrow, "processors", lambda device: 1)
    check(given, plain("frequency"), (randn(b, t, f, 64), *layer_weights(64, 128)), target)
    assert launched[0].startswith("launch_narrow") == (whole and target[1] != torch.float32)


def recorded(function, calls):
    def called(*arguments):
        calls.append(function.__name__)
        return function(*arguments)

    return called


def test_large_means_and_norms_of_a_narrow_layer(target):
    """What is folded into matrices (the norm's weight and bias, biases of keys and values) is far from 1 and 0, and
    rows are far from 0."""
    torch.manual_seed(0)
    weights = layer_weights(64, 128)
    for number, factor in ((0, 3.0), (1, 2.0), (2, 3.0), (3, 4.0), (6, 3.0), (7, 2.0)):
        weights[number] = weights[number] * factor
    check(kernel("frequency"), plain("frequency"), (20 + randn(1, 2, 32, 64), *weights), target)


@pytest.mark.parametrize(("width", "hidden", "history"), [(32, 64, 0), (64, 96, 5)])
def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted, width, hidden, history):
    operation = OPERATIONS["axis_layer"]
    arguments = (randn(1, 2, 3, width), AxisLayerWeights(*layer_weights(width, hidden)), 2, "time", 0.0, history)
    assert operation.serves(*arguments)
    assert operation.pick(*arguments) is operation.reference


class Activated(TorchDispatchMode):
    """Keeps what ReLU was given last."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten.relu.default:
            self.units = arguments[0]
        return function(*arguments, **(options or {}))


def clear_of_zero(layer, arguments, dtype):
    """Input and weights, rounded to ``dtype``, with a bias of the hidden units that leaves none of them near zero.

    There a rounding decides whether ReLU passes the gradient, and a few such units make up nearly all of the error in
    16 bit (benchmarks/NOTES.md). For each unit zero moves to the middle of the widest gap between its values.
    """
    arguments = [rounded(a, dtype) for a in arguments]
    with Activated() as activated:
        layer(*map(as_double, arguments))
    units = activated.units.flatten(0, -2).sort(0).values
    rows = len(units)
    units = units[rows // 4 : rows - rows // 4]  # so that each is on in some rows and off in others
    if len(units) > 1:
        gap, place = units.diff(dim=0).max(0)
        bias = 1 + AxisLayerWeights._fields.index("up_bias")
        arguments[bias] = (arguments[bias] - units.gather(0, place[None])[0] - gap / 2).to(dtype)
    return arguments


@AXES
@pytest.mark.parametrize(("b", "t", "f"), [(1, 1, 1), (2, 1, 2), (1, 1, 65), (1, 17, 2)])
def test_gradient(target, axis, b, t, f):
    """Of the input and of all twelve weights."""
    torch.manual_seed(0)
    arguments = clear_of_zero(plain(axis), (randn(b, t, f, 64), *layer_weights(64, 128)), target[1])
    check_gradients(kernel(axis), plain(axis), arguments, target)


@AXES
@pytest.mark.parametrize(("t", "f"), [(9, 32), (3, 40)])
def test_gradient_of_a_narrow_layer(target, monkeypatch, axis, t, f):
    """In 16 bit a program sums the gradients of all matrices over its tiles, the last of which may end early."""
    torch.manual_seed(0)
    given = kernel(axis)
    from fastenh_kernels.operations.axis_layer import (
        backward,
        narrow_feed_forward_gradient,
        narrow_frequency_gradient,
        narrow_frequency_training,
        narrow_norm_linear_gradient,
    )

    launched = []
    for module in (
        narrow_feed_forward_gradient,
        narrow_frequency_gradient,
        narrow_frequency_training,
        narrow_norm_linear_gradient,
    ):
        monkeypatch.setattr(module, "processors", lambda device: 1)
    for name in ("launch_narrow_feed_forward_gradient", "launch_feed_forward_gradient"):
        monkeypatch.setattr(backward, name, recorded(getattr(backward, name), launched))
    weights = layer_weights(64, 128)
    for number, factor in ((0, 3.0), (1, 2.0), (3, 3.0), (6, 3.0), (7, 2.0)):  # what is folded into matrices
        weights[number] = weights[number] * factor
    arguments = clear_of_zero(plain(axis), (2 + randn(1, t, f, 64), *weights), target[1])
    check_gradients(given, plain(axis), arguments, target)
    assert launched[0].startswith("launch_narrow") == (target[1] != torch.float32)


# lengths and bands that take other kernels where nothing is hidden: all of a layer, or the norm with attention, at once
@pytest.mark.parametrize(("axis", "t", "f", "history"), [
    ("time", 61, 1, 1), ("time", 61, 1, 3), ("time", 33, 2, 40), ("time", 125, 1, 128), ("frequency", 1, 32, 5),
])  # fmt: skip
def test_kernel_of_a_history(target, axis, t, f, history):
    torch.manual_seed(0)
    ours, theirs = kernel(axis, history=history), plain(axis, history=history)
    check(ours, theirs, (randn(1, t, f, 64), *layer_weights(64, 128)), target)


@pytest.mark.parametrize(("t", "history"), [(19, 1), (19, 3), (35, 40), pytest.param(67, 40, marks=pytest.mark.slow)])
def test_gradient_of_a_history(target, t, history):
    torch.manual_seed(0)
    ours, theirs = kernel("time", history=history), plain("time", history=history)
    arguments = clear_of_zero(theirs, (randn(1, t, 2, 64), *layer_weights(64, 128)), target[1])
    check_gradients(ours, theirs, arguments, target)


def test_gradient_is_the_same_bits_again(target):
    device, dtype = target
    arguments = [tensor.to(device, dtype) for tensor in (randn(1, 2, 17, 64), *layer_weights(64, 64))]
    twice(kernel("time"), arguments, range(13))


@AXES
@pytest.mark.parametrize("length", [pytest.param(65, marks=pytest.mark.slow), 21])
def test_dropout_is_drawn_again_in_the_backward_pass(target, axis, length):
    torch.manual_seed(0)
    shape = (1, 2, length, 64) if axis == "frequency" else (1, length, 2, 64)
    ours = dropping(axis, torch.tensor([SEED], device=target[0]))

    def masked(x, *weights):
        return layer_with_masks(x, AxisLayerWeights(*weights), 2, axis)

    check(ours, masked, (randn(*shape), *layer_weights(64, 64)), target)
    check_gradients(ours, masked, clear_of_zero(masked, (randn(*shape), *layer_weights(64, 64)), target[1]), target)


def test_dropout_follows_the_seed_of_torch(interpreted):
    x, weights = randn(1, 2, 5, 64), AxisLayerWeights(*layer_weights(64, 64))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(fastenh_kernels.axis_layer(x, weights, 2, "time", 0.1))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    first, second = (fastenh_kernels.axis_layer(x, weights, 2, "time") for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("clips", [0, 1])
@pytest.mark.parametrize(("hidden", "bands"), [(64, 3), (128, 3), (128, 32)])
def test_rows_that_a_copy_engine_does_not_take(interpreted, clips, hidden, bands):
    """None, or not aligned to 16 bytes."""
    weights = AxisLayerWeights(*(w.half().requires_grad_() for w in layer_weights(64, hidden)))
    apart = randn(clips * 2 * bands * 64 + 1).half()[1:].view(clips, 2, bands, 64)
    given = []
    for x in (apart.requires_grad_(), apart.detach().clone().requires_grad_()):
        y = fastenh_kernels.axis_layer(x, weights, 2, "frequency" if bands == 32 else "time")
        given.append((y, *torch.autograd.grad(y.sum(), (x, *weights))))
    assert given[0][0].shape == apart.shape
    assert all(map(torch.equal, *given))


def test_rules_of_torch(interpreted):
    kernel_of("axis_layer")
    from fastenh_kernels.operations.axis_layer import forward

    plain_rules = ("test_schema", "test_faketensor")
    layer = (randn(1, 2, 3, 64), layer_weights(64, 64), 4, "time")
    for history, folded in ((0, False), (2, False), (0, True)):
        torch.library.opcheck(forward.axis_layer_operator, (*layer, history, folded), test_utils=plain_rules)
    layer = (randn(1, 2, 3, 64).requires_grad_(), [w.requires_grad_() for w in layer_weights(64, 64)], 4, "time",
             0.1, torch.tensor([3]), 0)  # fmt: skip
    torch.library.opcheck(forward.axis_layer_forward, layer, test_utils=RULES)
    torch.library.opcheck(forward.axis_layer_forward, (*layer[:-1], 2), test_utils=RULES)
    for axis in ("frequency", "time"):  # narrow layers keep other rows
        weights = [w.half().requires_grad_() for w in layer_weights(64, 128)]
        layer = (randn(1, 2, 32, 64).half().requires_grad_(), weights, 2, axis, 0.0, None, 0)
        torch.library.opcheck(forward.axis_layer_forward, layer, test_utils=RULES)


def test_backends_agree():
    x, weights = randn(1, 4, 5, 16), AxisLayerWeights(*layer_weights(16, 32))
    with torch.inference_mode():
        results = []
        for name in ("reference", "cpu"):
            with backend.use_backend(name):
                results.append(fastenh_kernels.axis_layer(x, weights, 2, "time"))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
