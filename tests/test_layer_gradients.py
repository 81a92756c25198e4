"""Gradients of the transformer layer and its attention against float64, every input and weight."""

import pytest
import torch
import torch.nn.functional as F
from parity import check, layer_weights, randn
from test_kernel_gradients import check_gradients, twice

pytest.importorskip("triton")
import fastenh_kernels
import triton
import triton.language as tl
from fastenh_kernels.dropout import drop, seed_of

from fastenh import ops
from fastenh.ops import layer_operators, reference

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
HERE = "cpu" if fastenh_kernels.INTERPRETED else "cuda"
AXES = pytest.mark.parametrize("axis", ["frequency", "time"])


def attention(axis):
    return lambda qkv: layer_operators.axis_attention_forward(qkv, 2, axis, 0.0, None)[0]


def layer(axis):
    return lambda x, *weights: layer_operators.axis_layer_forward(x, weights, 2, axis, 0.0, None)[0]


@AXES
@pytest.mark.parametrize("length", [1, 2, 17, 65, 96, 188])
def test_gradient_of_axis_attention(target, axis, length):
    torch.manual_seed(length)
    shape = (1, 2, length) if axis == "frequency" else (1, length, 2)
    arguments = (2 * randn(*shape, 3 * 64),)
    check_gradients(attention(axis), lambda qkv: reference.axis_attention(qkv, 2, axis, 0.0), arguments, target)


def test_gradient_of_extreme_scores(target):
    """Keys behind the end of a block weigh exp(-lse), which overflows here, and must count for nothing."""
    qkv = randn(1, 1, 65, 3 * 64)
    qkv[..., :64] = 5.0
    qkv[..., 64:128] = -5.0 + 0.1 * randn(1, 1, 65, 64)
    check_gradients(attention("frequency"), lambda qkv: reference.axis_attention(qkv, 2, "frequency", 0.0), (qkv,),
                    target)  # fmt: skip


def test_gradient_of_axis_attention_is_the_same_bits_again(target):
    device, dtype = target
    twice(attention("frequency"), [randn(2, 3, 65, 192).to(device, dtype)], [0])


@AXES
@pytest.mark.parametrize(("b", "t", "f"), [(1, 1, 1), (2, 1, 65), (1, 17, 2)])
def test_gradient_of_axis_layer(target, axis, b, t, f):
    """Of the input and of all twelve weights."""
    torch.manual_seed(0)

    def plain(x, *weights):
        return reference.axis_layer(x, ops.AxisLayerWeights(*weights), 2, axis, 0.0)

    check_gradients(layer(axis), plain, (randn(b, t, f, 64), *layer_weights(64, 128)), target)


def test_gradient_of_axis_layer_is_the_same_bits_again(target):
    device, dtype = target
    arguments = [tensor.to(device, dtype) for tensor in (randn(1, 2, 17, 64), *layer_weights(64, 64))]
    twice(layer("time"), arguments, range(13))


# --- dropout: the same draws again, by a kernel of the test --------------------------------------------------------

DROPOUT, SEED = 0.3, 2**40 + 7


@triton.jit
def kept_kernel(p_out, p_seed, offset, count, N: tl.constexpr):  # noqa: N803
    """Writes 1 / (1 - DROPOUT) for values that are kept, else 0."""
    o = tl.program_id(0) * N + tl.arange(0, N)
    b = tl.full([N], 1.0, tl.float32)
    b = drop(b, seed_of(p_seed, offset, 0.3), o.to(tl.int64), 0.3)
    tl.store(p_out + o, b, mask=o < count)


def kept(offset, *shape):
    mask, seed = torch.zeros(shape, device=HERE), torch.tensor([SEED], device=HERE)
    kept_kernel[(triton.cdiv(mask.numel(), 256),)](mask, seed, offset, mask.numel(), 256)
    return mask.cpu().double()


def attention_with_masks(qkv, heads, axis):
    """The reference's attention, its weights multiplied by the draws."""
    b, t, f, packed = qkv.shape
    split = qkv.view(b, t, f, 3, heads, -1).permute((3, 0, 1, 4, 2, 5) if axis == "frequency" else (3, 0, 2, 4, 1, 5))
    q, k, v = split.flatten(1, 3)  # (sequences * heads, length, width)
    weights = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(-1)
    masks = torch.stack([kept(3 + row, *weights.shape[1:]) for row in range(len(weights))])
    out = (weights * masks.to(weights.dtype)) @ v
    out = out.unflatten(0, (b, t if axis == "frequency" else f, heads))  # (b, inner, heads, length, width)
    return out.permute((0, 1, 3, 2, 4) if axis == "frequency" else (0, 3, 1, 2, 4)).reshape(b, t, f, packed // 3)


def layer_with_masks(x, w, heads, axis):
    c, rows = x.shape[-1:], x.shape
    masks = [kept(offset, *rows[:3], n).to(x.dtype) for offset, n in enumerate((c[0], len(w.up_weight), c[0]))]
    qkv = F.linear(F.layer_norm(x, c, w.norm1_weight, w.norm1_bias), w.qkv_weight, w.qkv_bias)
    x = x + masks[0] * F.linear(attention_with_masks(qkv, heads, axis), w.out_weight, w.out_bias)
    hidden = F.linear(F.layer_norm(x, c, w.norm2_weight, w.norm2_bias), w.up_weight, w.up_bias).relu()
    return x + masks[2] * F.linear(masks[1] * hidden, w.down_weight, w.down_bias)


@AXES
@pytest.mark.parametrize("length", [pytest.param(65, marks=pytest.mark.slow), 21])
def test_dropout_is_drawn_again_in_the_backward_pass(target, axis, length):
    torch.manual_seed(0)
    shape = (1, 2, length, 64) if axis == "frequency" else (1, length, 2, 64)
    seed = torch.tensor([SEED], device=HERE)

    def ours(x, *weights):
        return layer_operators.axis_layer_forward(x, weights, 2, axis, DROPOUT, seed)[0]

    def plain(x, *weights):
        return layer_with_masks(x, ops.AxisLayerWeights(*weights), 2, axis)

    check(ours, plain, (randn(*shape), *layer_weights(64, 64)), target)
    check_gradients(ours, plain, (randn(*shape), *layer_weights(64, 64)), target)


@pytest.mark.slow
def test_dropout_of_long_sequences(target):
    """The kernels that stream: beyond 192 positions, or in float32."""
    seed = torch.tensor([SEED], device=HERE)

    def ours(qkv):
        return layer_operators.axis_attention_forward(qkv, 2, "time", DROPOUT, seed)[0]

    qkv = randn(1, 200, 1, 96)
    check(ours, lambda qkv: attention_with_masks(qkv, 2, "time"), (qkv,), target)
    check_gradients(ours, lambda qkv: attention_with_masks(qkv, 2, "time"), (qkv,), target)


def test_dropout_follows_the_seed_of_torch(interpreted):
    x, weights = randn(1, 2, 5, 64), ops.AxisLayerWeights(*layer_weights(64, 64))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(ops.axis_layer(x, weights, 2, "time", 0.1))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(ops.axis_layer(x, weights, 2, "time"), ops.axis_layer(x, weights, 2, "time"))
