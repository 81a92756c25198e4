"""The reference in tiles, as it runs on a CPU without gradients: the numbers of the reference in one piece."""

import pytest
import torch

from fastenh.ops import AxisLayerWeights, reference, tiles

C, HIDDEN, HEADS = 16, 32, 2
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def layer_weights(dtype):
    shapes = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,), (HIDDEN, C), (HIDDEN,), (C, HIDDEN), (C,)]
    return AxisLayerWeights(*(0.3 * torch.randn(*shape, dtype=torch.float64).to(dtype) for shape in shapes))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("axis", ["frequency", "time"])
@pytest.mark.parametrize(("clips", "frames", "bands"), [(1, 1, 1), (2, 40, 65), (3, 33, 7), (0, 5, 5)])
def test_layer(monkeypatch, dtype, fused, axis, clips, frames, bands):
    torch.manual_seed(0)
    if not fused:
        monkeypatch.setattr(tiles, "_fuses", lambda dtype: False)
    x, weights = torch.randn(clips, frames, bands, C, dtype=torch.float64).to(dtype), layer_weights(dtype)
    before = x.clone()
    with torch.inference_mode():
        given = reference.axis_layer(x, weights, HEADS, axis, 0.0)
    wide = AxisLayerWeights(*(w.double() for w in weights))
    truth = reference.axis_layer(x.double().requires_grad_(), wide, HEADS, axis, 0.0)  # a gradient: in one piece
    assert given.shape == x.shape
    assert given.dtype == dtype
    assert torch.equal(x, before)
    if clips:
        assert distance(given, truth.detach()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("clips", "frames", "bands", "bins"), [(1, 1, 2, 3), (2, 70, 65, 257), (1, 64, 33, 129)])
def test_mask(dtype, clips, frames, bands, bins):
    torch.manual_seed(0)
    z = torch.randn(clips, frames, bands, 3, C, dtype=torch.float64).to(dtype)
    vectors = [torch.randn(C, dtype=torch.float64).to(dtype) for _ in range(3)] + [torch.randn(1).to(dtype)]
    spectrum = torch.randn(clips, bins, frames, dtype=torch.complex128)
    given_spectrum = spectrum if dtype == torch.float64 else spectrum.to(torch.complex64)
    with torch.inference_mode():
        given = reference.mask_head(z, *vectors, given_spectrum)
    truth = reference.mask_head(z.double().requires_grad_(), *(v.double() for v in vectors), spectrum).detach()
    assert distance(torch.view_as_real(given), torch.view_as_real(truth)) < TOLERANCE[dtype]


def test_a_clip_gives_the_same_in_any_batch():
    torch.manual_seed(0)
    weights = layer_weights(torch.float32)
    x = torch.randn(3, 50, 65, C)
    with torch.inference_mode():
        for axis in ("frequency", "time"):
            together = reference.axis_layer(x, weights, HEADS, axis, 0.0)
            for number in range(3):
                alone = reference.axis_layer(x[number : number + 1], weights, HEADS, axis, 0.0)
                assert torch.equal(together[number : number + 1], alone)


def test_autocast_decides_the_dtype():
    x, weights = torch.randn(1, 8, 5, C), layer_weights(torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert reference.axis_layer(x, weights, HEADS, "time", 0.0).dtype == torch.bfloat16
