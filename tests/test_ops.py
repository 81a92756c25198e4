"""The reference operations against the textbook formulas, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastenh import ops
from fastenh.models.dpt import decoder_matrix, encoder_matrix
from fastenh.ops import backend

F64 = torch.float64


def spectrum(b, f, t):
    return torch.randn(b, f, t, dtype=torch.complex128)


def layer_weights(channels, hidden):
    shapes = [(channels,), (channels,), (3 * channels, channels), (3 * channels,), (channels, channels), (channels,)]
    shapes += [(channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,)]
    return ops.AxisLayerWeights(*(torch.randn(shape, dtype=F64) * 0.3 for shape in shapes))


def textbook_layer(w, heads):
    layer = nn.TransformerEncoderLayer(
        w.qkv_weight.shape[1], heads, w.up_weight.shape[0], 0.0, "relu", batch_first=True, norm_first=True, dtype=F64
    )
    names = ["norm1", "self_attn.in_proj_", "self_attn.out_proj", "norm2", "linear1", "linear2"]
    keys = [f"{n}weight" if n.endswith("_") else f"{n}.weight" for n in names]
    state = {}
    for key, weight, bias in zip(keys, w[::2], w[1::2], strict=True):
        state[key], state[key.replace("weight", "bias")] = weight, bias
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize("axis", ["frequency", "time"])
@pytest.mark.parametrize(("b", "t", "f"), [(1, 1, 1), (2, 17, 2), (1, 2, 65), (3, 5, 63)])
def test_axis_layer_is_the_textbook_encoder_layer(axis, b, t, f):
    torch.manual_seed(0)
    w = layer_weights(16, 24)
    x = torch.randn(b, t, f, 16, dtype=F64)
    sequences = x if axis == "frequency" else x.transpose(1, 2)
    expected = textbook_layer(w, 4)(sequences.flatten(0, 1)).view(sequences.shape)
    expected = expected if axis == "frequency" else expected.transpose(1, 2)
    torch.testing.assert_close(ops.axis_layer(x, w, 4, axis), expected)


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_attention_with_gradient_equals_attention_without(axis):
    qkv = torch.randn(2, 7, 9, 3 * 16, dtype=F64)
    without = ops.axis_attention(qkv, 4, axis)
    with_gradient = ops.axis_attention(qkv.clone().requires_grad_(), 4, axis)
    torch.testing.assert_close(with_gradient.detach(), without)


def test_attention_of_equal_keys_is_the_mean_of_the_values():
    qkv = torch.randn(1, 6, 5, 48, dtype=F64)
    qkv[..., 16:32] = 1.0
    values = qkv[..., 32:]
    torch.testing.assert_close(ops.axis_attention(qkv, 4, "frequency"), values.mean(2, keepdim=True).expand_as(values))
    torch.testing.assert_close(ops.axis_attention(qkv, 4, "time"), values.mean(1, keepdim=True).expand_as(values))


def test_attention_weights_are_dropped():
    """Of equal keys and values of one a position gets the share of weights that is left, doubled for a half."""
    qkv = torch.ones(1, 50, 40, 12, dtype=F64, requires_grad=True)
    given = ops.axis_attention(qkv, 2, "frequency", 0.5)[..., ::2].detach()  # a channel of either head
    kept = given * 40 / 2
    torch.testing.assert_close(kept, kept.round())
    assert kept.mean().item() == pytest.approx(20, abs=0.5)
    assert kept.std().item() == pytest.approx(10**0.5, rel=0.1)  # binomial


@pytest.mark.parametrize(
    ("bias", "masks"), [("out_bias", 1), ("down_bias", 1), ("up_bias", 2)], ids=["attention", "feed-forward", "hidden"]
)
def test_branches_and_hidden_units_are_dropped(bias, masks):
    """All weights but one bias are 0, so a branch is this bias of 1 behind the dropouts on its way."""
    zeros = ops.AxisLayerWeights(*map(torch.zeros_like, layer_weights(16, 16)))
    down = torch.eye(16, dtype=F64) if bias == "up_bias" else zeros.down_weight
    weights = zeros._replace(**{"down_weight": down, bias: torch.ones(16, dtype=F64)})
    added = ops.axis_layer(torch.zeros(2, 20, 30, 16, dtype=F64), weights, 2, "time", 0.25)
    kept = 0.75**masks
    torch.testing.assert_close(added[added != 0].unique(), torch.tensor([1 / kept], dtype=F64))
    assert (added != 0).double().mean().item() == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize(("bins", "bands"), [(257, 65), (2, 1), (5, 3), (33, 9)])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_commuted_decoder_is_upsampling_then_convolution(bins, bands, frames):
    torch.manual_seed(1)
    conv, head = nn.Conv2d(6, 4, 3, padding=1, dtype=F64), nn.Conv2d(4, 1, 1, dtype=F64)
    scale, shift = torch.randn(4, dtype=F64), torch.randn(4, dtype=F64)
    x, noisy = torch.randn(2, frames, bands, 6, dtype=F64), spectrum(2, bins, frames)
    up = F.interpolate(x.permute(0, 3, 2, 1), size=(bins, frames), mode="bilinear", align_corners=False)
    affine = conv(up) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    expected = torch.sigmoid(head(affine.relu()))[:, 0] * noisy
    skip = torch.randn_like(x)
    z = ops.decoder_taps(x - skip, skip, decoder_matrix(conv.weight))
    folded = shift + conv.bias * scale
    torch.testing.assert_close(ops.mask_head(z, scale, folded, head.weight, head.bias, noisy), expected)
    mean, var = ops.upsampled_moments(z, bins)
    without_bias = conv(up) - conv.bias.view(-1, 1, 1)
    torch.testing.assert_close(mean, without_bias.mean((0, 2, 3)))
    torch.testing.assert_close(var, without_bias.var((0, 2, 3), correction=0))


def test_gradient_of_the_moments():
    z = torch.randn(1, 2, 3, 3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ops.upsampled_moments(z, 9), z)


def test_encoder_front_is_log_magnitude_then_convolution():
    conv = nn.Conv2d(1, 8, 3, stride=(2, 1), padding=1, dtype=F64)
    noisy = spectrum(2, 257, 11)
    expected = conv(torch.log1p(noisy.abs())[:, None]).permute(0, 3, 2, 1)
    torch.testing.assert_close(ops.encoder_front(noisy, conv.weight, conv.bias), expected)


def test_encoder_conv_is_a_convolution():
    for channels, bands in ((4, 9), (3, 6)):
        conv = nn.Conv2d(channels, 5, 3, stride=(2, 1), padding=1, dtype=F64)
        x = torch.randn(2, 7, bands, channels, dtype=F64)
        expected = conv(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        matrix = encoder_matrix(conv.weight)
        torch.testing.assert_close(ops.encoder_conv(x, matrix, conv.bias), expected)
        torch.testing.assert_close(ops.encoder_conv(x, matrix, conv.bias, relu=True), expected.relu())


def test_complex_mask():
    noisy, real = spectrum(2, 5, 3), torch.randn(2, 5, 3, dtype=F64) * 4
    torch.testing.assert_close(ops.complex_mask(real, noisy, "sigmoid"), torch.sigmoid(real) * noisy)
    torch.testing.assert_close(ops.complex_mask(real, noisy, "none"), real * noisy)
    mask = spectrum(2, 5, 3) * 4
    mask[0, 0, 0] = 0
    bounded = ops.complex_mask(mask, torch.ones_like(noisy), "tanh")
    assert (bounded.abs() < 1).all()
    torch.testing.assert_close(bounded.abs(), torch.tanh(mask.abs()))
    torch.testing.assert_close(bounded.angle(), mask.angle())
    with pytest.raises(ValueError, match="complex mask"):
        ops.complex_mask(mask, noisy, "sigmoid")


def test_backend_choice_and_refusal(monkeypatch):
    cpu = torch.device("cpu")
    assert backend.choose(cpu).name == "reference"
    with backend.use_backend("triton"), pytest.raises(backend.BackendError, match="cannot run on cpu"):
        backend.choose(cpu)
    monkeypatch.setenv("FASTENH_BACKEND", "nonsense")
    with pytest.raises(backend.BackendError, match="FASTENH_BACKEND"):
        backend.choose(cpu)
    with backend.use_backend("reference"):
        assert backend.choose(cpu).reason == "asked for"
