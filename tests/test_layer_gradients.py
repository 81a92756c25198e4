"""Gradients of the transformer layer and its attention against float64, every input and weight."""

import pytest
import torch
from parity import layer_weights, randn
from test_kernel_gradients import check_gradients, twice

pytest.importorskip("triton")
from fastenh import ops
from fastenh.ops import layer_operators, reference

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
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
