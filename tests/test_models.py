"""The models of the origin, the STFT around them, and their level."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DPT, voice
from parity import relative
from torch import nn

from fastenh.models.dpt import DPT, DPTConfig
from fastenh.models.frontend import Frontend
from fastenh.models.mel import invert_mel, mel_filter_bank, normalised_transpose
from fastenh.models.registry import (
    MODELS,
    ModelError,
    build,
    count_parameters,
    make_config,
    operations_per_second,
)
from fastenh.models.transformers import MelTransformerConfig, sinusoidal_positions

PARAMETERS = {
    "dpt_complex": 235_874,
    "dpt": 904_705,
    "crn": 1_811_009,
    "stft_transformer": 2_451_457,
    "mel_transformer": 2_450_945,
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    """Those of the origin's four, to the number."""
    assert count_parameters(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 255, 256, 257, 3000])
def test_any_length_and_silence(name, length):
    torch.manual_seed(0)
    model = build(name).eval()
    with torch.inference_mode():
        assert torch.isfinite(model(torch.randn(2, length))).all()
        assert model(torch.randn(2, length)).shape == (2, length)
        assert not model(torch.zeros(1, length)).any()


def test_the_smaller_hop():
    model = build("dpt", DPTConfig(hop=128)).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 1000)).shape == (1, 1000)


def test_dpt_operations_are_counted():
    """Against a count by hand of the layers' and the decoder's matrix products, for 62.5 frames a second."""
    bands, c, hidden = 65, 128, 512
    frames = 187
    layer = bands * frames * 2 * c * (4 * c + 2 * hidden)
    attention = sum(2 * 2 * c * n * sequences * n for n, sequences in ((bands, frames), (frames, bands)))
    decoder = frames * 2 * (bands * 3 * c * 192 + 257 * 195 * 64 + 257 * 64)
    encoder = frames * 2 * (129 * 9 * 32 + bands * 9 * 32 * c)
    expected = (4 * layer + 2 * attention + decoder + encoder) / 3.0
    assert operations_per_second("dpt", 3.0) == pytest.approx(expected, rel=0.01)


class TextbookDPT(nn.Module):
    """The dual-path transformer as the origin wrote it: permutes, nn.TransformerEncoderLayer, upsampled decoder."""

    def __init__(self, d=128, front=32, head=64, heads=4, ff=512, blocks=2):
        super().__init__()
        self.e1 = nn.Sequential(nn.Conv2d(1, front, 3, (2, 1), 1), nn.BatchNorm2d(front), nn.ReLU())
        self.e2 = nn.Sequential(nn.Conv2d(front, d, 3, (2, 1), 1), nn.BatchNorm2d(d), nn.ReLU())
        layer = {"batch_first": True, "norm_first": True, "dropout": 0.0}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(d, heads, ff, **layer) for _ in range(2 * blocks))
        self.d1 = nn.Sequential(nn.Conv2d(d, head, 3, 1, 1), nn.BatchNorm2d(head), nn.ReLU())
        self.d2 = nn.Conv2d(head, 1, 1)

    def forward(self, noisy):
        skip = x = self.e2(self.e1(torch.log1p(noisy.abs())[:, None]))
        for index, layer in enumerate(self.layers):
            b, c, f, t = x.shape
            if index % 2 == 0:
                x = layer(x.permute(0, 3, 2, 1).reshape(b * t, f, c)).view(b, t, f, c).permute(0, 3, 2, 1)
            else:
                x = layer(x.permute(0, 2, 3, 1).reshape(b * f, t, c)).view(b, f, t, c).permute(0, 3, 1, 2)
        up = F.interpolate(x + skip, size=noisy.shape[1:], mode="bilinear", align_corners=False)
        return torch.sigmoid(self.d2(self.d1(up)))[:, 0] * noisy


def as_textbook(core):
    """The textbook module with the weights of ``core``."""
    c = TINY_DPT
    book = TextbookDPT(c.channels, c.front_channels, c.head_channels, c.heads, c.feed_forward, c.blocks).double()
    sides = [(book.e1, core.front, core.front_norm), (book.e2, core.encoder, core.encoder_norm)]
    for side, conv, norm in [*sides, (book.d1, core.decoder, core.decoder_norm)]:
        side[0].load_state_dict(conv.state_dict())
        side[1].load_state_dict(norm.state_dict())
    book.d2.load_state_dict(core.head.state_dict())
    for i, layer in enumerate(core.layers):
        modules = {"self_attn.in_proj_": layer.qkv, "self_attn.out_proj.": layer.out, "linear1.": layer.up}
        modules |= {"linear2.": layer.down, "norm1.": layer.norm1, "norm2.": layer.norm2}
        state = {
            f"{key}{kind}": getattr(module, kind) for key, module in modules.items() for kind in ("weight", "bias")
        }
        book.layers[i].load_state_dict(state)
    return book


@pytest.mark.parametrize("training", [False, True])
def test_dpt_is_the_textbook_dpt(training):
    torch.manual_seed(3)
    core = DPT(DPTConfig(**{**vars(TINY_DPT), "dropout": 0.0})).double()
    for module in core.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    book = as_textbook(core).train(training)
    core.train(training)
    noisy = torch.randn(2, 257, 9, dtype=torch.complex128)
    ours, theirs = core(noisy), book(noisy)
    torch.testing.assert_close(ours, theirs)
    if training:
        for key in ("running_mean", "running_var"):
            torch.testing.assert_close(getattr(core.decoder_norm, key), getattr(book.d1[1], key))
        ours.abs().sum().backward()
        theirs.abs().sum().backward()
        torch.testing.assert_close(core.decoder.weight.grad, book.d1[0].weight.grad)
        torch.testing.assert_close(core.layers[0].qkv.weight.grad, book.layers[0].self_attn.in_proj_weight.grad)
        torch.testing.assert_close(core.front.weight.grad, book.e1[0].weight.grad)


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_dpt_core_is_one_graph(tiny_model, training):
    """torch.compile without a break, at two lengths, in evaluation and with its backward in training."""
    core = tiny_model.core.train(training)
    compiled = torch.compile(core, backend="aot_eager", fullgraph=True)
    for frames in (9, 12):
        noisy = torch.randn(1, 257, frames, dtype=torch.complex64)
        torch.manual_seed(0)
        ours = compiled(noisy)
        if training:
            ours.abs().sum().backward()
            without = [
                name for name, p in core.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
            ]
            assert without == ["decoder.bias"]  # batch norm takes it out again
        else:
            torch.testing.assert_close(ours, core(noisy))


@pytest.mark.parametrize("hop", [128, 256])
def test_stft_round_trip_of_every_length(hop):
    frontend = Frontend(hop)
    signal = torch.randn(1, 2000)
    for length in range(1, 2001):
        back = frontend.istft(frontend.stft(signal[:, :length]), length)
        assert back.shape == (1, length)
        assert (back - signal[:, :length]).abs().max() < 1e-5, length


@pytest.mark.parametrize("hop", [128, 256])
def test_a_random_mask_makes_no_peak_at_the_edges(hop):
    torch.manual_seed(0)
    frontend = Frontend(hop)
    for length in range(2048, 2048 + hop):
        signal = torch.randn(4, length)
        noisy = frontend.stft(signal)
        masked = frontend.istft(noisy * torch.rand(noisy.shape), length)
        assert (masked.abs().amax(-1) <= 1.5 * signal.abs().amax(-1)).all(), length


@pytest.mark.parametrize("hop", [128, 256])
@pytest.mark.parametrize("length", [1, 700, 2048])
def test_the_inverse_stft_has_the_gradient_of_torchs(hop, length):
    frontend = Frontend(hop).double()
    spectrum = frontend.stft(torch.randn(2, length, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(2, length, dtype=torch.float64)
    theirs = torch.istft(spectrum, 512, hop, window=frontend.window, length=length + -length % hop)[:, :length]
    gradients = [
        torch.autograd.grad((x * weights).sum(), spectrum)[0] for x in (frontend.istft(spectrum, length), theirs)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("hop", [128, 256])
@pytest.mark.parametrize("length", [1, 700, 2048])
def test_the_stft_is_torchs_and_has_its_gradient(hop, length):
    frontend = Frontend(hop).double()
    waveform = torch.randn(2, length, dtype=torch.float64, requires_grad=True)
    ours, padded = frontend.stft(waveform), torch.nn.functional.pad(waveform, (0, -length % hop))
    theirs = torch.stft(padded, 512, hop, window=frontend.window, pad_mode="constant", return_complex=True)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((x * weights.conj()).real.sum(), waveform)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_hop_that_is_not_supported():
    with pytest.raises(ValueError, match="hop must be"):
        Frontend(100)


@pytest.mark.parametrize("db", [-60, -30, 20])
def test_level_passes_through(tiny_model, db):
    gain = 10 ** (db / 20)
    signal = torch.from_numpy(voice(8000)).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(tiny_model(signal * gain) / gain, tiny_model(signal), rtol=1e-3, atol=1e-5)


def test_mel_bank():
    bank = mel_filter_bank(128)
    assert bank.shape == (257, 128)
    assert bank.min() >= 0
    assert bank.max() <= 1
    assert not bank[0].any()  # the first filter rises from 0 Hz
    spread = normalised_transpose(bank)
    torch.testing.assert_close(spread.sum(0), torch.ones(257))  # equal gains stay what they are
    power = torch.rand(1, 257, 4) + 0.5
    mel = bank.T @ power
    torch.testing.assert_close(bank.T @ invert_mel(mel, bank), mel, rtol=0.05, atol=0.05)


def test_mel_bank_is_torchaudios():
    torchaudio = pytest.importorskip("torchaudio", exc_type=(ImportError, OSError))
    theirs = torchaudio.functional.melscale_fbanks(257, 0.0, 8000.0, 128, 16_000, norm=None, mel_scale="htk")
    torch.testing.assert_close(mel_filter_bank(128), theirs, rtol=1e-4, atol=1e-5)


def test_griffin_lim_loses_the_waveform_where_the_gain_keeps_it():
    """The origin's finding: with a mask of ones, the gain gives the input back and Griffin-Lim does not."""
    torch.manual_seed(0)
    signal = torch.from_numpy(voice(16_000)).unsqueeze(0)
    errors = {}
    for reconstruction in ("gain", "griffin_lim"):
        model = build("mel_transformer", MelTransformerConfig(reconstruction=reconstruction)).eval()
        model.core.body.head.weight.data.zero_()
        model.core.body.head.bias.data.fill_(20.0)
        with torch.inference_mode():
            errors[reconstruction] = ((model(signal) - signal).norm() / signal.norm()).item()
    assert errors["gain"] < 1e-4
    assert errors["griffin_lim"] > 0.3


def test_positions_beyond_512_frames():
    table = sinusoidal_positions(2000, 8, torch.device("cpu"))
    assert table.shape == (2000, 8)
    assert table[1999, 0] == pytest.approx(math.sin(1999.0), abs=1e-3)
    assert table[7, 3] == pytest.approx(math.cos(7 * 10_000 ** (-2 / 8)), abs=1e-5)


def test_unknown_names():
    with pytest.raises(ModelError, match="there are dpt_complex, dpt, crn"):
        build("dpx")
    with pytest.raises(ModelError, match="no setting 'chanels'"):
        make_config("dpt", {"chanels": 3})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_for_inference_is_the_same_model(tiny_model, dtype):
    with torch.no_grad():
        for norm in (m for m in tiny_model.modules() if isinstance(m, nn.BatchNorm2d)):  # as after training
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)
        noisy = torch.randn(2, 4000)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            folded, plain = (model(noisy) for model in (tiny_model.folded(dtype), tiny_model))
        if dtype == torch.float32:
            torch.testing.assert_close(folded, plain, rtol=0, atol=0)
        else:  # layer norms are folded, too: other roundings, the same distance to the truth
            truth = copy.deepcopy(tiny_model).double()(noisy.double())
            assert relative(folded, truth) <= 1.5 * relative(plain, truth)


def test_a_core_without_a_folded_form_stays_as_it_is():
    model = build("crn").eval()
    assert model.folded().core is model.core
