"""The operations around the dual path of dpt_complex: formulas and kernels."""

import pytest
import torch
from parity import RULES, check, check_gradients, kernel_of, randn, reference_of, twice
from torch import nn

import fastenh_kernels
from fastenh_kernels.operation import OPERATIONS, tensors_of
from fastenh_kernels.shared import processors
from fastenh_kernels.shared.compression import compress, expand, multiply

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")
NAMES = ("compressed_front", "band_encoder", "band_decoder", "compressed_mask")  # the last one has a gradient


def spectrum(frames, clips=2):
    """As ``torch.stft`` lays it: bins side by side. One bin is silent."""
    found = torch.view_as_complex(randn(clips, frames, 257, 2))
    found[..., 7] = 0
    return found.transpose(1, 2)


def arguments(name, frames, channels=32, bands=32, width=64, ahead=1, clips=2):
    """Grouped as the operation takes them."""
    torch.manual_seed(0)
    x = randn(clips, frames, 64, channels)
    convolutions = [part for _ in range(2) for part in (0.2 * randn(channels, channels, 3), randn(channels))]
    match name:
        case "compressed_front":
            return spectrum(frames, clips), 0.2 * randn(channels, 3, 8, 3), randn(channels), 0.3, ahead
        case "compressed_mask":
            return x, 0.2 * randn(channels, 2, 8, 3), randn(2), spectrum(frames, clips), 0.3, ahead
        case "band_encoder":
            maps = 0.1 * randn(bands, 64), 0.2 * randn(width, channels), randn(width), randn(bands, width)
            return x, tuple(convolutions), maps
        case "band_decoder":
            maps = 0.2 * randn(channels, width), randn(channels), 0.1 * randn(64, bands)
            skips = tuple(randn(3, clips, frames, 64, channels))
            mixes = [part for _ in range(3) for part in (0.2 * randn(channels, 2 * channels), randn(channels))]
            return randn(clips, frames, bands, width), skips, maps, tuple(mixes), tuple(convolutions)


def flat(function, given):
    """``function`` on flat arguments, and these: as ``check`` wants them."""
    sizes = [len(part) if isinstance(part, tuple) else None for part in given]

    def call(*values):
        values = iter(values)
        parts = [next(values) if n is None else tuple(next(values) for _ in range(n)) for n in sizes]
        out = function(*parts)
        if isinstance(out, tuple):
            return torch.cat([part.flatten() for part in out])
        return torch.view_as_real(out) if out.is_complex() else out

    return call, [value for part in given for value in (part if isinstance(part, tuple) else (part,))]


def test_compression_and_its_inverse():
    torch.manual_seed(0)
    x = spectrum(5).to(torch.complex128)
    pairs, magnitude = compress(x, 0.3)
    torch.testing.assert_close(magnitude, ((x.abs().square() + 1e-10) ** 0.15).mT)
    torch.testing.assert_close(pairs.norm(dim=-1)[x.mT != 0], magnitude[x.mT != 0])
    torch.testing.assert_close(expand(pairs, 0.3), x)


def test_multiplication_is_that_of_complex_numbers():
    a, b = spectrum(3), spectrum(3).flip(1)
    product = torch.view_as_complex(multiply(*map(torch.view_as_real, (a, b))))
    torch.testing.assert_close(product, a * b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_kernel(target, name, frames):
    given = arguments(name, frames)
    ours, values = flat(kernel_of(name), given)
    check(ours, flat(reference_of(name), given)[0], values, target)


@pytest.mark.parametrize(("name", "shape"), [
    ("compressed_front", {"channels": 16, "ahead": 0}), ("compressed_front", {"channels": 64, "ahead": 2}),
    ("compressed_mask", {"channels": 16, "ahead": 0}), ("compressed_mask", {"channels": 64, "ahead": 2}),
    ("band_encoder", {"channels": 16, "bands": 64, "width": 32}), ("band_encoder", {"channels": 64, "bands": 16}),
    ("band_decoder", {"channels": 16, "bands": 64, "width": 32}), ("band_decoder", {"channels": 64, "bands": 16}),
])  # fmt: skip
def test_kernel_of_other_shapes(target, name, shape):
    given = arguments(name, 4, **shape)
    ours, values = flat(kernel_of(name), given)
    check(ours, flat(reference_of(name), given)[0], values, target)


@pytest.mark.parametrize("name", NAMES)
def test_no_clips(interpreted, name):
    given = arguments(name, 3, clips=0)
    assert [r.shape for r in tensors_of((kernel_of(name)(*given),))] == [
        r.shape for r in tensors_of((reference_of(name)(*given),))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("frames", "ahead"), [(1, 1), (2, 0), (9, 2), (9, 1)])
def test_on_a_processor(monkeypatch, dtype, fused, name, frames, ahead):
    if not fused:
        monkeypatch.setattr(processors, "fuses", lambda dtype: False)
    given = arguments(name, frames, ahead=ahead)
    before = [tensor.clone() for tensor in tensors_of(given)]
    ours, values = flat(OPERATIONS[name].cpu, given)
    with torch.inference_mode():
        check(ours, flat(reference_of(name), given)[0], values, ("cpu", dtype))
    assert all(map(torch.equal, before, tensors_of(given)))


@pytest.mark.parametrize("name", NAMES)
def test_a_processor_takes_matrices_in_float32_under_an_autocast_and_no_clips(name):
    for clips in (0, 2):
        given = arguments(name, 3, clips=clips)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            ours, plain = (tensors_of((function(*given),)) for function in (OPERATIONS[name].cpu, reference_of(name)))
        for one, other in zip(ours, plain, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2, check_dtype=False, check_stride=False)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_on_a_processor_is_that_of_the_reference(name):
    given = arguments(name, 2)
    ours, values = flat(OPERATIONS[name].cpu, given)
    wanted = [place for place, value in enumerate(values) if isinstance(value, torch.Tensor) and not value.is_complex()]
    check_gradients(ours, flat(reference_of(name), given)[0], values, ("cpu", torch.float32), wanted)


def test_encoder_and_decoder_are_convolutions_and_linear_maps():
    x, convolutions, (down, enter, bias, positions) = arguments("band_encoder", 3)
    y, *outs = fastenh_kernels.band_encoder(x, convolutions, (down, enter, bias, positions))
    for given, out, number in ((x, outs[0], 0), (outs[0], outs[1], 2)):
        for band in (0, 1, 63):
            near = [given[:, :, b] if 0 <= b < 64 else torch.zeros_like(x[:, :, 0]) for b in range(band - 1, band + 2)]
            value = sum(n @ convolutions[number][..., k].T for k, n in enumerate(near)) + convolutions[number + 1]
            torch.testing.assert_close(out[:, :, band], value * value.sigmoid())
    torch.testing.assert_close(y, torch.einsum("nf,btfc,wc->btnw", down, outs[1], enter) + bias + positions)
    y, skips, (leave, bias, up), mixes, convolutions = arguments("band_decoder", 3)
    ours = fastenh_kernels.band_decoder(y, skips[:1], (leave, bias, up), mixes[:2], ())
    wide = torch.einsum("fn,btnc->btfc", up, y @ leave.T + bias)
    torch.testing.assert_close(ours, nn.functional.silu(torch.cat([wide, skips[0]], -1) @ mixes[0].T + mixes[1]))


def test_a_mask_of_one_gives_all_but_the_last_bin_back():
    x, weight, _, given, power, ahead = arguments("compressed_mask", 5)
    out = fastenh_kernels.compressed_mask(x, 0 * weight, torch.tensor([1.0, 0.0]), given, power, ahead)
    torch.testing.assert_close(out[:, :256], given[:, :256], rtol=1e-3, atol=1e-4)
    assert not out[:, 256].any()


@pytest.mark.parametrize(("frames", "channels", "ahead"), [(1, 32, 1), (2, 16, 0), (3, 64, 2), (9, 32, 1)])
def test_gradient_of_the_mask(target, frames, channels, ahead):
    given = arguments("compressed_mask", frames, channels, ahead=ahead)
    check_gradients(kernel_of("compressed_mask"), reference_of("compressed_mask"), given, target, [0, 1, 2])


def test_gradient_of_the_mask_is_the_same_bits_again_and_none_of_the_spectrum(interpreted):
    given = arguments("compressed_mask", 5)
    twice(kernel_of("compressed_mask"), list(given), [0, 1, 2])
    given[3].requires_grad_()
    assert OPERATIONS["compressed_mask"].pick(*given) is reference_of("compressed_mask")


@pytest.mark.parametrize("name", NAMES[:-1])
def test_training_takes_the_reference(interpreted, name):
    operation, given = OPERATIONS[name], arguments(name, 2)
    tensors_of(given)[1].requires_grad_()
    assert operation.pick(*given) is operation.reference
    with torch.no_grad():
        assert operation.pick(*given) is operation.kernel


@pytest.mark.parametrize(
    ("name", "shape"),
    [("compressed_front", {"channels": 8}), ("compressed_mask", {"channels": 24}), ("band_encoder", {"bands": 33}),
     ("band_encoder", {"width": 48}), ("band_decoder", {"bands": 8}), ("band_decoder", {"channels": 128})],
)  # fmt: skip
def test_what_the_kernel_does_not_serve_goes_to_the_reference(interpreted, name, shape):
    operation, given = OPERATIONS[name], arguments(name, 2, **shape)
    assert "the kernel takes" in operation.serves(*given)
    with torch.no_grad():
        assert operation.pick(*given) is operation.reference


@pytest.mark.parametrize("name", NAMES)
def test_rules_of_torch(interpreted, name):
    kernel_of(name)
    operator = getattr(torch.ops.fastenh_kernels, name)
    given = [list(part) if isinstance(part, tuple) else part for part in arguments(name, 3)]
    rules = RULES if name == "compressed_mask" else [r for r in RULES if "autograd" not in r]
    if name == "compressed_mask":
        given = [part.requires_grad_() if number < 3 else part for number, part in enumerate(given)]
    torch.library.opcheck(operator, tuple(given), test_utils=rules)
