"""The narrow dual path with a complex mask."""

import pytest
import torch
import torch.nn.functional as F
from conftest import voice
from parity import textbook_layer
from torch import nn

from fastenh.models.dpt_complex import DPTComplex, DPTComplexConfig, band_matrices
from fastenh.models.registry import build
from fastenh_kernels.shared.compression import compress

TINY = {"channels": 16, "conv_channels": 8, "bands": 8, "feed_forward": 32, "blocks": 2}
FORMS = {"offline": {}, "causal convolutions": {"causal": True}, "live": {"causal": True, "history": 5}}


def core(dtype=torch.float32, **settings):
    """Tiny, with random weights and the statistics of batch norms that a training might leave."""
    torch.manual_seed(0)
    made = DPTComplex(DPTComplexConfig(**{**TINY, **settings})).to(dtype).eval()
    with torch.no_grad():
        made.positions.normal_()
        for norm in (m for m in made.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return made


def spectrum(frames, clips=1, dtype=torch.complex64):
    return torch.randn(clips, 257, frames, dtype=dtype, generator=torch.Generator().manual_seed(1))


def textbook(model, noisy):
    """The offline form in evaluation as a figure would show it, with the weights of ``model``."""

    def convolve(part, x):
        return F.silu(part.norm(part.conv(x)))

    def attend(layer, sequences):
        encoder = textbook_layer(layer.weights(), layer.heads).eval()
        return encoder(sequences.flatten(0, 1)).view(sequences.shape)

    power = model.compression
    squeezed = noisy[:, :-1] * noisy[:, :-1].abs() ** (power - 1)
    x = torch.stack([squeezed.real, squeezed.imag, squeezed.abs()], 1)
    x = F.silu(model.front_norm(F.conv2d(x, model.front.weight, stride=(4, 1), padding=(2, 1))))
    skips = [x]
    for part in model.encoder:
        skips.append(convolve(part, skips[-1]))
    y = torch.einsum("gf,bcft->bgtc", model.to_bands, skips[-1])  # (B, bands, T, C')
    y = model.enter(y) + model.positions.unsqueeze(1)
    for over_time, over_bands in zip(model.layers[::2], model.layers[1::2], strict=True):
        normal = over_time.norm(y).transpose(2, 3).flatten(0, 1)
        taps = over_time.taps.weight.squeeze(3)
        near = F.conv1d(normal, taps, over_time.taps.bias, padding=taps.shape[2] // 2, groups=taps.shape[0])
        y = attend(over_time.attention, y + near.unflatten(0, y.shape[:2]).transpose(2, 3))
        y = attend(over_bands, y.transpose(1, 2)).transpose(1, 2)
    x = torch.einsum("fg,bgtc->bcft", model.from_bands, model.leave(y))
    for number, part in enumerate(model.decoder):
        x = convolve(part, convolve(model.mix[number], torch.cat([x, skips[-1 - number]], 1)))
    x = convolve(model.mix[-1], torch.cat([x, skips[0]], 1))
    mask = F.conv_transpose2d(x, model.head.weight, model.head.bias, stride=(4, 1), padding=(2, 1))
    masked = torch.complex(mask[:, 0], mask[:, 1]) * squeezed
    return F.pad(masked * masked.abs() ** (1 / power - 1), (0, 0, 0, 1))


@pytest.mark.parametrize("frames", [1, 9])
def test_offline_form_is_the_textbook_one(frames):
    model, noisy = core(torch.float64), spectrum(frames, clips=2, dtype=torch.complex128)
    torch.testing.assert_close(model(noisy), textbook(model, noisy))


def test_training_starts_from_an_attenuator():
    """Of one half on the compressed spectrum, which turns no phase."""
    torch.manual_seed(0)
    noisy = spectrum(20)
    with torch.no_grad():
        squeezed = [
            torch.view_as_complex(compress(x[:, :-1], 0.3)[0]).transpose(1, 2)
            for x in (noisy, build("dpt_complex").core.eval()(noisy))
        ]
    mask = squeezed[1] / squeezed[0]
    assert mask.real.mean().item() == pytest.approx(0.5, abs=0.1)
    assert mask.imag.mean().item() == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frames", [1, 2, 17])
def test_shapes_and_gradients(form, frames):
    model = core(**FORMS[form]).train()
    out = model(spectrum(frames, clips=2))
    assert out.shape == (2, 257, frames)
    assert not out[:, -1].any()  # the bin at half of the sampling rate
    out.abs().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    silent = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert silent == [] or frames == 1  # one frame attends to itself, whatever its query


def test_silence_has_a_finite_gradient_and_stays_silence():
    model = core().train()
    out = model(torch.zeros(1, 257, 9, dtype=torch.complex64))
    assert not out.abs().any()
    out.abs().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_only_the_live_form_ignores_what_comes():
    """Causality on growing prefixes: the frames before a cut are what they are without what follows."""
    whole = spectrum(24, dtype=torch.complex128)
    for form, settings in FORMS.items():
        model = core(torch.float64, **settings)
        with torch.inference_mode():
            prefix = model(whole[..., :16])
            error = (model(whole)[..., :16] - prefix).abs().max() / prefix.abs().max()
        assert (error < 1e-12) == (form == "live"), form


def test_history_is_counted_in_frames():
    """One block sees taps - 1 frames before each of the frames that attention sees, and two under the first
    convolution and the head each."""
    model = core(torch.float64, causal=True, history=5, blocks=1, taps=3)
    whole = spectrum(40, dtype=torch.complex128)
    reach = (5 - 1) + (3 - 1) + 2 + 2
    with torch.inference_mode():
        before = model(whole)
        for gap, changes in ((reach, True), (reach + 1, False)):
            other = whole.clone()
            other[..., 30 - gap] += 1.0
            assert (model(other)[..., 30] - before[..., 30]).abs().max().item() > 0 or not changes
            assert torch.equal(model(other)[..., 30], before[..., 30]) != changes


def test_a_mask_of_one_gives_the_input_back():
    """But for the bin at half of the sampling rate."""
    model = build("dpt_complex", DPTComplexConfig(**TINY)).eval()
    with torch.no_grad():
        model.core.head.weight.zero_()
        model.core.head.bias.copy_(torch.tensor([1.0, 0.0]))
        signal = torch.from_numpy(voice(8000)).unsqueeze(0)
        torch.testing.assert_close(model(signal), signal, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_for_inference_is_the_same_model(dtype):
    model, noisy = core(**FORMS["offline"]), spectrum(9, clips=2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, theirs = model.folded(dtype)(noisy), model(noisy)
    assert (ours - theirs).norm() / theirs.norm() < (1e-6 if dtype == torch.float32 else 0.02)
    assert model.layers[0].attention.qkv.weight.dtype == torch.float32  # the model itself stays as it is


@pytest.mark.parametrize("form", FORMS)
def test_training_computes_what_evaluation_does(form):
    """With the same statistics in the batch norms."""
    model, noisy = core(torch.float64, **FORMS[form]), spectrum(9, clips=2, dtype=torch.complex128)
    expected = model(noisy)
    model.train()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    torch.testing.assert_close(model(noisy), expected)


@pytest.mark.parametrize("bands", [1, 8, 32, 64])
def test_band_matrices_keep_what_is_constant(bands):
    down, up = band_matrices(bands)
    torch.testing.assert_close(down @ torch.ones(64), torch.ones(bands))
    torch.testing.assert_close(up @ torch.ones(bands), torch.ones(64))


@pytest.mark.parametrize(
    ("form", "training"),
    [
        ("offline", True),
        pytest.param("live", False, marks=pytest.mark.slow),
        pytest.param("offline", False, marks=pytest.mark.slow),
        pytest.param("live", True, marks=pytest.mark.slow),
    ],
)
def test_core_is_one_graph(form, training):
    model = core(**FORMS[form]).train(training)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for frames in (9,) if training else (9, 12):  # in training all crops have one length
        ours, theirs = compiled(spectrum(frames)), model(spectrum(frames))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if training:
        ours.abs().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_bfloat16_autocast_is_near():
    model = build("dpt_complex", DPTComplexConfig(**TINY)).eval()
    signal = torch.from_numpy(voice(16_000)).unsqueeze(0)
    with torch.inference_mode():
        exact = model(signal)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(signal)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < 0.02
