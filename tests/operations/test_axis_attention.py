"""Attention along one axis: formulas, the form for processors, kernels, gradients, dropout."""

import subprocess
import sys

import pytest
import torch
from dropout_again import DROPOUT, SEED, attention_with_masks
from parity import FLOORS, RULES, check, check_gradients, kernel_of, randn, reference_of, relative, twice

import fastenh_kernels
from fastenh_kernels import backend
from fastenh_kernels.operation import OPERATIONS

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
AXES = pytest.mark.parametrize("axis", ["frequency", "time"])
# (history, length): all of it seen or more, a part of a block, blocks; lengths that end within a block and at its end
HISTORIES = [(1, 1), (3, 2), (40, 17), (1, 65), (3, 65), (128, 65), (40, 96), (65, 129), (128, 187)]
LENGTHS = [1, 2, 17, 63, 64, 65, 80, 100, 129, 188, 257, pytest.param(401, marks=pytest.mark.slow)]
F64 = torch.float64


def along(axis, length, channels):
    """(clips, T, F, channels), two sequences of ``length``."""
    return (1, 2, length, channels) if axis == "frequency" else (1, length, 2, channels)


def kernel(axis, heads=2, history=0):
    return lambda qkv: kernel_of("axis_attention")(qkv, heads, axis, 0.0, history)


def plain(axis, heads=2, history=0):
    return lambda qkv: reference_of("axis_attention")(qkv, heads, axis, 0.0, history)


def dropping(axis, seed, history=0):
    """The operator that keeps what its gradient needs, with a seed of our own."""
    kernel_of("axis_attention")
    from fastenh_kernels.operations.axis_attention.forward import axis_attention_forward

    return lambda qkv: axis_attention_forward(qkv, 2, axis, DROPOUT, seed, history)[0]


def test_attention_of_equal_keys_is_the_mean_of_the_values():
    qkv = torch.randn(1, 6, 5, 48, dtype=F64)
    qkv[..., 16:32] = 1.0
    values = qkv[..., 32:]
    for axis, dim in (("frequency", 2), ("time", 1)):
        mean = values.mean(dim, keepdim=True).expand_as(values)
        torch.testing.assert_close(fastenh_kernels.axis_attention(qkv, 4, axis), mean)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_attention_weights_are_dropped(implementation):
    """Of equal keys and values of one a position gets the share of weights that is left, doubled for a half."""
    qkv = torch.ones(1, 50, 40, 12, dtype=F64, requires_grad=True)
    dropping = getattr(OPERATIONS["axis_attention"], implementation)
    given = dropping(qkv, 2, "frequency", 0.5)[..., ::2].detach()  # a channel of either head
    kept = given * 40 / 2
    torch.testing.assert_close(kept, kept.round())
    assert kept.mean().item() == pytest.approx(20, abs=0.5)
    assert kept.std().item() == pytest.approx(10**0.5, rel=0.1)  # binomial


@AXES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_processor(axis, dtype):
    """With a gradient and without: the same result, and the gradient of the reference."""
    qkv = torch.randn(2, 7, 9, 3 * 16).to(dtype)
    cpu = OPERATIONS["axis_attention"].cpu
    truth = plain(axis, 4)(qkv.double())
    for given in (qkv, qkv.clone().requires_grad_()):
        result = cpu(given, 4, axis, 0.0)
        assert result.dtype == dtype
        assert relative(result.detach(), truth) < 4 * FLOORS[dtype]
    check_gradients(lambda qkv: cpu(qkv, 4, axis, 0.0), plain(axis, 4), (qkv.float(),), ("cpu", torch.float32))


@AXES
@pytest.mark.parametrize("length", LENGTHS)
def test_kernel(target, axis, length):
    torch.manual_seed(length)
    check(kernel(axis), plain(axis), (2 * randn(*along(axis, length, 3 * 64)),), target)


@pytest.mark.parametrize(("history", "length"), HISTORIES)
def test_kernel_of_a_history(target, history, length):
    torch.manual_seed(length)
    qkv = 2 * randn(*along("time", length, 3 * 64))
    check(kernel("time", history=history), plain("time", history=history), (qkv,), target)


def test_what_is_outside_of_a_history_changes_nothing(target):
    """Not even a value that is not a number, in blocks that are not computed."""
    qkv = randn(1, 300, 1, 192).to(*target)
    whole = kernel("time", history=40)(qkv)
    qkv[:, :64] = float("nan")
    qkv[:, 256:] = float("nan")
    assert torch.equal(kernel("time", history=40)(qkv)[:, 192:256], whole[:, 192:256])


@AXES
def test_any_strides_and_widths(target, axis):
    for heads, width in ((1, 16), (2, 64), (1, 128)):
        packed = randn(2, 6, 10, 3 * heads * width)[:, ::2, ::2]
        check(kernel(axis, heads), lambda qkv, heads=heads: plain(axis, heads)(qkv.contiguous()), (packed,), target)


def test_the_kernel_of_equal_keys_gives_the_mean_of_the_values(target):
    for length in (5, 65, 200):
        qkv = randn(1, 1, length, 96).to(target[0])
        qkv[..., 32:64] = 1.0
        mean = qkv[..., 64:].mean(2, keepdim=True).expand(-1, -1, length, -1)
        torch.testing.assert_close(kernel("frequency", 1)(qkv), mean, atol=1e-5, rtol=1e-4)


def test_extreme_scores(target):
    qkv = randn(1, 1, 65, 96).to(target[0]) * 300
    attended = kernel("frequency", 1)(qkv)
    assert torch.isfinite(attended).all()
    assert attended.abs().max() <= qkv[..., 64:].abs().max() * 1.001


def test_nothing_in_nothing_out():
    assert kernel("time", 1)(randn(0, 3, 5, 96)).shape == (0, 3, 5, 32)


@pytest.mark.parametrize(("heads", "width"), [(1, 8), (3, 16), (1, 256)])
def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted, heads, width):
    operation, qkv = OPERATIONS["axis_attention"], randn(1, 2, 5, 3 * heads * width)
    assert str(width) in operation.serves(qkv, heads, "time", 0.0)
    assert operation.pick(qkv, heads, "time", 0.0) is operation.reference
    assert fastenh_kernels.axis_attention(qkv, heads, "time").shape == (1, 2, 5, heads * width)


@pytest.mark.gpu
@AXES
def test_seventy_thousand_sequences(axis):
    shape = (70_000, 1, 65) if axis == "frequency" else (70_000, 65, 1)
    qkv = torch.randn(*shape, 384, device="cuda", dtype=torch.bfloat16)
    ours = kernel(axis, 4)(qkv)
    for rows in (slice(0, 100), slice(69_900, 70_000)):
        assert relative(ours[rows], plain(axis, 4)(qkv[rows].float()).cpu()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_thousand_frames(dtype):
    check(kernel("time", 4), plain("time", 4), (torch.randn(1, 4096, 2, 384),), ("cuda", dtype))


@AXES
@pytest.mark.parametrize("length", [1, 2, 17, 65, 96, 188])
def test_gradient(target, axis, length):
    torch.manual_seed(length)
    check_gradients(kernel(axis), plain(axis), (2 * randn(*along(axis, length, 3 * 64)),), target)


@pytest.mark.parametrize(("history", "length"), HISTORIES)
def test_gradient_of_a_history(target, history, length):
    torch.manual_seed(length)
    qkv = 2 * randn(*along("time", length, 3 * 64))
    check_gradients(kernel("time", history=history), plain("time", history=history), (qkv,), target)


def test_a_history_along_bands(target):
    qkv = randn(*along("frequency", 33, 3 * 64))
    check_gradients(kernel("frequency", history=7), plain("frequency", history=7), (qkv,), target)


def test_gradient_of_extreme_scores_outside_of_a_history(target):
    """Positions that are not seen have by far the largest scores; they must count for nothing."""
    qkv = 0.1 * randn(1, 80, 1, 3 * 64)
    qkv[:, :40, :, :128] += 30.0
    check_gradients(kernel("time", history=20), plain("time", history=20), (qkv,), target)


def rounded_once(qkv, grad_out):
    """The gradient of one sequence and head as FlashAttention rounds it: weights and their gradients are multiplied in
    float32, and each is rounded once, on the way into the next product."""
    (q, k, v), do = (x.float() for x in qkv.reshape(-1, 3, 32).unbind(1)), grad_out.reshape(-1, 32).float()
    p = (q @ k.T / 32**0.5).softmax(-1)
    delta = (do * (p @ v).to(qkv.dtype).float()).sum(-1, keepdim=True)
    ds = (p * (do @ v.T - delta)).to(qkv.dtype).float()
    products = (ds @ k / 32**0.5, ds.T @ q / 32**0.5, p.to(qkv.dtype).float().T @ do)
    return torch.stack(products, 1).to(qkv.dtype).view_as(qkv)


@pytest.mark.parametrize("length", [64, 65, 126])
def test_gradient_is_rounded_once(target, length):
    """The floor of the other tests would hide a gradient of the weights that is rounded on every step to it."""
    device, dtype = target
    if dtype == torch.float32:
        pytest.skip("nothing is rounded")
    torch.manual_seed(1)
    qkv, grad = 2 * randn(1, length, 1, 96, dtype=dtype), randn(1, length, 1, 32, dtype=dtype)
    double = qkv.double().requires_grad_()
    truth = torch.autograd.grad(reference_of("axis_attention")(double, 1, "time"), double, grad.double())[0]
    leaf = qkv.to(device).requires_grad_()
    found = torch.autograd.grad(kernel_of("axis_attention")(leaf, 1, "time"), leaf, grad.to(device))[0]
    for part in (slice(0, 32), slice(32, 64)):  # of the queries, of the keys
        error, error_of_once = (
            relative(ours[..., part], truth[..., part]) for ours in (found, rounded_once(qkv, grad))
        )
        assert error < 1.1 * error_of_once, (error, error_of_once)


def test_gradient_of_extreme_scores(target):
    """Keys behind the end of a block weigh exp(-lse), which overflows here, and must count for nothing."""
    qkv = randn(1, 1, 65, 3 * 64)
    qkv[..., :64] = 5.0
    qkv[..., 64:128] = -5.0 + 0.1 * randn(1, 1, 65, 64)
    check_gradients(kernel("frequency"), plain("frequency"), (qkv,), target)


def test_gradient_is_the_same_bits_again(target):
    device, dtype = target
    twice(kernel("frequency"), [randn(1, 1, 65, 192).to(device, dtype)], [0])


@pytest.mark.slow
def test_dropout_of_long_sequences(target):
    """The kernels that stream: beyond 192 positions, or in float32."""
    ours = dropping("time", torch.tensor([SEED], device=target[0]))
    qkv = randn(1, 200, 1, 96)
    check(ours, lambda qkv: attention_with_masks(qkv, 2, "time"), (qkv,), target)
    check_gradients(ours, lambda qkv: attention_with_masks(qkv, 2, "time"), (qkv,), target)


def test_dropout_of_a_history(target):
    ours = dropping("time", torch.tensor([SEED], device=target[0]), 20)
    qkv = randn(1, 70, 1, 96)
    check(ours, lambda qkv: attention_with_masks(qkv, 2, "time", 20), (qkv,), target)
    check_gradients(ours, lambda qkv: attention_with_masks(qkv, 2, "time", 20), (qkv,), target)


def test_rules_of_torch(interpreted):
    kernel_of("axis_attention")
    from fastenh_kernels.operations.axis_attention import forward

    rules = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward.axis_attention_operator, (randn(1, 2, 5, 96), 2, "time", 0), test_utils=rules)
    kept = (randn(1, 2, 5, 96).requires_grad_(), 2, "time", 0.1, torch.tensor([3]), 0)
    torch.library.opcheck(forward.axis_attention_forward, kept, test_utils=RULES)
    torch.library.opcheck(forward.axis_attention_forward, (*kept[:-1], 3), test_utils=RULES)
    torch.library.opcheck(forward.axis_attention_operator, (randn(1, 2, 5, 96), 2, "time", 3), test_utils=rules)


def test_the_library_alone_without_triton_and_without_fastenh(tmp_path):
    """Someone who wants attention along an axis needs torch and this package."""
    code = (
        "import sys; sys.modules['triton'] = None; sys.modules['fastenh'] = None\n"
        "import torch, fastenh_kernels\n"
        "print(tuple(fastenh_kernels.axis_attention(torch.randn(2, 5, 65, 384), 4, 'frequency').shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "(2, 5, 65, 128)", done.stderr


def test_backend_for_a_processor_is_the_cpus():
    qkv = randn(1, 2, 5, 96)
    operation = OPERATIONS["axis_attention"]
    assert operation.pick(qkv, 2, "time", 0.0) is operation.cpu
    assert operation.pick(qkv.double(), 2, "time", 0.0) is operation.reference
    with backend.use_backend("reference"):
        assert operation.pick(qkv, 2, "time", 0.0) is operation.reference
