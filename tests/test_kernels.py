"""The Triton kernels against float64, in the interpreter or, with -m gpu, on a GPU.

The error of a result is its distance to the float64 reference, relative to the norm of that. A kernel passes with at
most 1.5 times the error of the reference in the same dtype, and a floor.
"""

import copy
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLES, noise, voice
from parity import check, layer_weights, randn, relative

pytest.importorskip("triton")
import fastenh_kernels

from fastenh import Enhancer, ops
from fastenh.enhance.graphs import GraphedModel, filled_count
from fastenh.evaluate.metrics import available, score, si_sdr
from fastenh.models.dpt import DPTConfig
from fastenh.models.dpt_complex import DPTComplexConfig
from fastenh.models.registry import build
from fastenh.ops import backend, reference
from fastenh.ops.proof import disproof
from fastenh.train.losses import EnhancementLoss, LossConfig

SMALL = DPTConfig(channels=64, front_channels=8, head_channels=16, heads=2, feed_forward=64, blocks=1)
LENGTHS = [1, 2, 17, 63, 64, 65, 80, 100, 129, 188, 257, 401]
HERE = "cpu" if fastenh_kernels.INTERPRETED else "cuda"  # where the kernels run in this process


pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (1, 257, 9)])
@pytest.mark.parametrize(
    ("activation", "complex_mask"),
    [("none", False), ("sigmoid", False), ("tanh", False), ("none", True), ("tanh", True)],
)
def test_complex_mask(target, shape, activation, complex_mask):
    torch.manual_seed(0)
    mask = randn(*shape, dtype=torch.complex64) if complex_mask else 4 * randn(*shape)
    mask.view(-1)[0] = 1e-4  # where tanh(m) / m loses digits
    check(
        fastenh_kernels.complex_mask, reference.complex_mask, (mask, randn(*shape, dtype=torch.complex64), activation),
        target,
    )  # fmt: skip


def test_complex_mask_of_any_strides(target):
    mask, spectrum = randn(3, 8, 10).transpose(0, 2), randn(10, 16, 6, dtype=torch.complex64)[:, ::2, ::2]
    assert not mask.is_contiguous()
    assert not spectrum.is_contiguous()
    check(fastenh_kernels.complex_mask, reference.complex_mask, (mask, spectrum, "sigmoid"), target)


@pytest.mark.parametrize("axis", ["frequency", "time"])
@pytest.mark.parametrize("length", LENGTHS)
def test_axis_attention(target, axis, length):
    torch.manual_seed(length)
    shape = (1, 2, length) if axis == "frequency" else (1, length, 2)
    check(
        lambda qkv: fastenh_kernels.axis_attention(qkv, 2, axis),
        lambda qkv: reference.axis_attention(qkv, 2, axis, 0.0),
        (2 * randn(*shape, 3 * 64),),
        target,
    )


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_axis_attention_of_any_strides_and_widths(target, axis):
    for heads, width in ((1, 16), (2, 64), (1, 128)):
        packed = randn(2, 6, 10, 3 * heads * width)[:, ::2, ::2]
        check(
            lambda qkv, heads=heads: fastenh_kernels.axis_attention(qkv, heads, axis),
            lambda qkv, heads=heads: reference.axis_attention(qkv.contiguous(), heads, axis, 0.0),
            (packed,),
            target,
        )


def test_axis_attention_of_equal_keys_is_the_mean_of_the_values():
    for length in (5, 65, 200):
        qkv = randn(1, 1, length, 96).to(HERE)
        qkv[..., 32:64] = 1.0
        mean = qkv[..., 64:].mean(2, keepdim=True).expand(-1, -1, length, -1)
        torch.testing.assert_close(fastenh_kernels.axis_attention(qkv, 1, "frequency"), mean, atol=1e-5, rtol=1e-4)


def test_axis_attention_survives_extreme_scores():
    qkv = randn(1, 1, 65, 96).to(HERE) * 300
    attended = fastenh_kernels.axis_attention(qkv, 1, "frequency")
    assert torch.isfinite(attended).all()
    assert attended.abs().max() <= qkv[..., 64:].abs().max() * 1.001


def test_nothing_in_nothing_out():
    assert fastenh_kernels.axis_attention(randn(0, 3, 5, 96), 1, "time").shape == (0, 3, 5, 32)
    assert fastenh_kernels.complex_mask(randn(0, 3, 5), randn(0, 3, 5, dtype=torch.complex64), "none").numel() == 0


@pytest.mark.parametrize("axis", ["frequency", "time"])
@pytest.mark.parametrize(
    ("b", "t", "f"),
    [(1, 1, 1), (2, 3, 65), (1, 17, 2), (1, 64, 2), pytest.param(2, 2, 188, marks=pytest.mark.slow), (1, 125, 1)],
)
def test_axis_layer(target, axis, b, t, f):
    torch.manual_seed(0)
    check(
        lambda x, *weights: fastenh_kernels.axis_layer(x, weights, 2, axis),
        lambda x, *weights: reference.axis_layer(x, ops.AxisLayerWeights(*weights), 2, axis, 0.0),
        (randn(b, t, f, 64), *layer_weights(64, 128)),
        target,
    )


@pytest.mark.parametrize(("bands", "channels", "outputs"), [(65, 128, 64), (1, 16, 8), (7, 33, 5), (2, 64, 43)])
@pytest.mark.parametrize("frames", [1, 2, 5, 19])
def test_decoder_taps(target, bands, channels, outputs, frames):
    torch.manual_seed(0)
    x, skip = randn(2, 2, frames, bands, channels)
    arguments = (x, skip, randn(3, channels, 3 * outputs))
    check(fastenh_kernels.decoder_taps, reference.decoder_taps, arguments, target)


@pytest.mark.parametrize(("bands", "channels", "outputs"), [(129, 32, 128), (1, 4, 16), (6, 11, 24), (65, 42, 130)])
@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("relu", [False, True])
def test_encoder_conv(target, bands, channels, outputs, frames, relu):
    torch.manual_seed(0)
    check(
        lambda *tensors: fastenh_kernels.encoder_conv(*tensors, relu),
        lambda *tensors: reference.encoder_conv(*tensors, relu),
        (randn(2, frames, bands, channels), randn(3, 3 * channels, outputs), randn(outputs)),
        target,
    )


@pytest.mark.parametrize(("bins", "channels"), [(257, 32), (1, 8), (2, 16), (66, 4)])
@pytest.mark.parametrize(("frames", "relu"), [(1, True), (2, False), (5, True), (11, False)])
def test_encoder_front(target, bins, channels, frames, relu):
    torch.manual_seed(0)
    spectrum = randn(2, frames, bins, dtype=torch.complex64).transpose(1, 2)
    spectrum[:, :, 0] *= 1e-3  # where log(1 + m) loses digits
    weight, bias = randn(channels, 1, 3, 3), randn(channels)

    def plain(spectrum, weight, bias):  # torch convolves in the dtype of the features, which are those of the weight
        wide = weight.double() if spectrum.dtype == torch.complex128 else weight.float()
        return reference.encoder_front(spectrum, wide, bias.to(wide.dtype), relu).to(weight.dtype)

    check(lambda *tensors: fastenh_kernels.encoder_front(*tensors, relu), plain, (spectrum, weight, bias), target)


@pytest.mark.parametrize(
    ("bands", "bins", "channels"), [(65, 257, 64), (1, 2, 16), (3, 5, 16), (33, 129, 64), (9, 9, 32)]
)
@pytest.mark.parametrize("frames", [1, 3, 19])
def test_mask_head(target, bands, bins, channels, frames):
    torch.manual_seed(0)
    vectors = randn(3, channels)
    spectrum = randn(2, frames, bins, dtype=torch.complex64).transpose(1, 2)
    arguments = (randn(2, frames, bands, 3, channels), *vectors, randn(1), spectrum)
    check(fastenh_kernels.mask_head, reference.mask_head, arguments, target)


def test_what_the_kernels_refuse():
    with pytest.raises(ValueError, match="heads of 8 channels"):
        fastenh_kernels.axis_attention(randn(1, 2, 3, 24), 1, "time")
    with pytest.raises(ValueError, match="129 values"):
        fastenh_kernels.decoder_taps(*randn(2, 1, 2, 3, 129), randn(3, 129, 6))
    with pytest.raises(ValueError, match="power of two"):
        fastenh_kernels.mask_head(randn(1, 2, 3, 3, 6), *randn(3, 6), randn(1), randn(1, 5, 2, dtype=torch.complex64))


@pytest.mark.gpu
@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_seventy_thousand_sequences(axis):
    shape = (70_000, 1, 65) if axis == "frequency" else (70_000, 65, 1)
    qkv = torch.randn(*shape, 384, device="cuda", dtype=torch.bfloat16)
    ours = fastenh_kernels.axis_attention(qkv, 4, axis)
    for rows in (slice(0, 100), slice(69_900, 70_000)):
        theirs = reference.axis_attention(qkv[rows].float(), 4, axis, 0.0)
        assert relative(ours[rows], theirs.cpu()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_thousand_frames(dtype):
    qkv = torch.randn(1, 4096, 2, 384, device="cuda").to(dtype)
    check(
        lambda qkv: fastenh_kernels.axis_attention(qkv, 4, "time"),
        lambda qkv: reference.axis_attention(qkv, 4, "time", 0.0),
        (qkv.cpu(),),
        ("cuda", dtype),
    )


@pytest.mark.gpu
def test_graphs_give_what_the_model_gives():
    model = build("dpt", SMALL).eval().folded().cuda()
    graphed = GraphedModel(model, 4000)
    with torch.inference_mode():
        for count, length in ((3, 4000), (1, 4000), (4, 4000), (3, 5000), (3, 4000)):
            waveforms = torch.randn(count, length, device="cuda")
            torch.testing.assert_close(graphed(waveforms), model(waveforms), rtol=1e-4, atol=1e-5)
    assert sorted(graphed._graphs) == [1, 4]


def test_other_lengths_run_without_a_graph():
    graphed = GraphedModel(lambda waveforms: 2 * waveforms, 4000)
    assert torch.equal(graphed(torch.ones(3, 100)), 2 * torch.ones(3, 100))
    assert not graphed._graphs


def test_windows_are_filled_up_to_a_power_of_two():
    assert [filled_count(n) for n in (1, 2, 3, 4, 5, 16, 17)] == [1, 2, 4, 4, 8, 16, 32]


# --- as operators --------------------------------------------------------------------------------------------------


def test_operators_keep_the_rules_of_torch(interpreted):
    from fastenh.ops import layer_operators, operators

    checks = ("test_schema", "test_faketensor")
    spectrum = randn(1, 5, 3, dtype=torch.complex64)
    torch.library.opcheck(operators.complex_mask, (randn(1, 5, 3), spectrum, "sigmoid"), test_utils=checks)
    torch.library.opcheck(layer_operators.axis_attention, (randn(1, 2, 5, 96), 2, "time"), test_utils=checks)
    with_gradient = (*checks, "test_autograd_registration", "test_aot_dispatch_dynamic")
    attention = (randn(1, 2, 5, 96).requires_grad_(), 2, "time", 0.0, None)
    torch.library.opcheck(layer_operators.axis_attention_forward, attention, test_utils=with_gradient)
    arguments = (randn(1, 3, 3, 3, 16), *randn(3, 16), randn(1), spectrum)
    torch.library.opcheck(operators.mask_head, arguments, test_utils=checks)
    layer = (randn(1, 2, 3, 64), layer_weights(64, 64), 4, "frequency")
    torch.library.opcheck(layer_operators.axis_layer, layer, test_utils=checks)
    layer = (randn(1, 2, 3, 64).requires_grad_(), [w.requires_grad_() for w in layer_weights(64, 64)], 4, "time",
             0.1, torch.tensor([3]))  # fmt: skip
    torch.library.opcheck(layer_operators.axis_layer_forward, layer, test_utils=with_gradient)
    taps = (*randn(2, 1, 2, 3, 16), randn(3, 16, 12))
    torch.library.opcheck(operators.decoder_taps, taps, test_utils=checks)
    conv = (randn(1, 2, 5, 4), randn(3, 12, 8), randn(8), True)
    torch.library.opcheck(operators.encoder_conv, conv, test_utils=checks)
    torch.library.opcheck(operators.encoder_front, (spectrum, randn(4, 1, 3, 3), randn(4), False), test_utils=checks)


def test_the_model_is_the_same_on_both_paths(interpreted):
    """Tiny model: SI-SDR between the two outputs, and of each against the clean signal."""
    torch.manual_seed(0)
    model = build(
        "dpt", DPTConfig(channels=64, front_channels=8, head_channels=16, heads=2, feed_forward=64, blocks=1)
    ).eval()
    clean = voice(3000)
    noisy = clean + noise(3000)
    ours = Enhancer(model, "cpu", "float32")(noisy, 16_000)
    with backend.use_backend("reference"):
        theirs = Enhancer(model, "cpu", "float32")(noisy, 16_000)
    assert not np.array_equal(ours, theirs)  # the kernels did run
    assert si_sdr(ours, theirs) >= 60
    assert abs(si_sdr(ours, clean) - si_sdr(theirs, clean)) <= 0.02


def test_the_narrow_layers_are_the_same_on_both_paths(interpreted):
    """The shape that dpt_complex ships: 64 channels, two heads, 128 hidden units, 32 bands."""
    torch.manual_seed(0)
    core = build("dpt_complex", DPTComplexConfig(blocks=1)).train().core
    spectrum = torch.randn(1, 257, 3, dtype=torch.complex64)
    results = []
    for name in ("interpret", "reference"):
        core.zero_grad()
        with backend.use_backend(name):
            out = core(spectrum)
            out.abs().sum().backward()
        results.append({n: p.grad.clone() for n, p in core.named_parameters()} | {"out": out.detach()})
    ours, theirs = results
    before_a_norm = ("leave.bias", "layers.1.down.bias")  # a batch norm takes these away again
    compared = {n: relative(ours[n], theirs[n]) for n in ours if n not in before_a_norm}
    assert not torch.equal(ours["out"], theirs["out"])  # the kernels did run
    assert max(compared.values()) < 1e-4, compared


def test_gradients_of_the_model(interpreted):
    """Every parameter of a tiny model in training, against float64."""
    clean = torch.from_numpy(voice(200))[None]
    noisy = clean + torch.from_numpy(noise(200))[None]
    torch.manual_seed(0)
    model = build("dpt", dataclasses.replace(SMALL, dropout=0.0)).train()
    double = copy.deepcopy(model).double()
    for core, waveforms in ((model, (noisy, clean)), (double, (noisy.double(), clean.double()))):
        (core(waveforms[0]) - waveforms[1]).square().mean().backward()
    before_a_norm = ("front.bias", "encoder.bias", "decoder.bias")  # a batch norm takes these away again
    pairs = [(p.grad, q.grad, name) for (name, p), q in zip(model.named_parameters(), double.parameters(), strict=True)]
    compared = {name: relative(p, q) for p, q, name in pairs if not name.endswith(before_a_norm)}
    assert len(compared) == 35
    assert max(compared.values()) < 1e-4, compared


def test_training_is_one_graph(interpreted):
    """Forward pass and loss under torch.compile, with gradients."""
    torch.manual_seed(0)
    model = build("dpt", dataclasses.replace(SMALL, dropout=0.0)).train()
    loss = EnhancementLoss(LossConfig())
    noisy, clean = randn(2, 1, 200)

    def forward(noisy, clean):
        return loss(model(noisy), clean, noisy)

    gradients = []
    for function in (forward, torch.compile(forward, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        function(noisy, clean).backward()
        gradients.append(model.core.layers[0].up.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_fifty_steps_of_training_on_both_paths(interpreted):
    """From one seed the losses go together; what was trained on one path scores the same on the other."""
    losses, models = {}, {}
    clean = torch.from_numpy(voice(600))[None]
    noisy = clean + torch.from_numpy(noise(600))[None]
    for name in ("interpret", "reference"):
        torch.manual_seed(0)
        models[name] = model = build("dpt", dataclasses.replace(SMALL, dropout=0.0)).train()
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
        with backend.use_backend(name):
            losses[name] = [step(model, optimiser, noisy, clean) for _ in range(50)]
    np.testing.assert_allclose(losses["interpret"], losses["reference"], rtol=0.01)
    assert losses["reference"][-1] < losses["reference"][0]
    trained, outputs = models["interpret"].eval(), {}
    for name in models:
        with backend.use_backend(name), torch.no_grad():
            outputs[name] = trained(noisy)[0].numpy()
    assert si_sdr(outputs["interpret"], outputs["reference"]) >= 60


def step(model, optimiser, noisy, clean):
    loss = (model(noisy) - clean).abs().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


@pytest.mark.slow
def test_the_shipped_model_scores_the_same_on_both_paths(interpreted):
    """PESQ, STOI and SI-SDR of a sample, float32; on a GPU at full length: test_the_shipped_model_on_the_gpu."""
    check_scores(*(shipped(name, "cpu", "float32", seconds=2.0) for name in ("interpret", "reference")), least=60)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "least"), [("float32", 60), ("bfloat16", 35)])
def test_the_shipped_model_on_the_gpu(dtype, least):
    with torch.backends.cudnn.flags(allow_tf32=False):  # of the reference's convolutions
        ours, theirs = (shipped(name, "cuda", dtype, seconds=None) for name in ("triton", "reference"))
    check_scores(ours, theirs, least, scale=1 if dtype == "float32" else 10)


def shipped(name, device, dtype, seconds):
    """(enhanced, clean) of a sample by the shipped model on one backend."""
    pair = [soundfile.read(SAMPLES / side / "english-babble.flac", dtype="float32")[0] for side in (".", "clean")]
    noisy, clean = (x[: int(seconds * 16_000)] if seconds else x for x in pair)
    with backend.use_backend(name):
        return Enhancer.from_pretrained("dpt", device, dtype)(noisy, 16_000), clean


def check_scores(ours, theirs, least, scale=1):
    assert not np.array_equal(ours[0], theirs[0])  # the kernels did run
    assert si_sdr(ours[0], theirs[0]) >= least
    scores = [score(enhanced, clean, available()) for enhanced, clean in (ours, theirs)]
    for metric, most in (("pesq", 0.005), ("stoi", 0.0005), ("si_sdr", 0.02)):
        assert abs(scores[0][metric] - scores[1][metric]) <= most * scale, (metric, scores)


def test_the_reference_serves_what_the_kernels_do_not(interpreted):
    qkv = randn(1, 2, 5, 96)
    assert backend.pick("axis_attention", qkv) is not reference.axis_attention
    assert backend.pick("axis_attention", qkv.double()) is reference.axis_attention
    assert backend.pick("axis_attention", qkv.clone().requires_grad_()) is not reference.axis_attention
    assert backend.pick("decoder_taps", qkv.clone().requires_grad_()) is not reference.decoder_taps
    assert ops.axis_attention(randn(1, 2, 5, 24), 1, "time").shape == (1, 2, 5, 8)  # heads too narrow for a kernel
    with backend.use_backend("reference"):
        assert backend.pick("axis_attention", qkv) is reference.axis_attention


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float16])
def test_the_kernels_prove_themselves(interpreted, monkeypatch, dtype):
    """What decides whether ``auto`` takes them: nothing wrong as they are; a wrong or failing one is named."""
    assert disproof(torch.device("cpu"), dtype, frames=1) == ""
    assert disproof(torch.device("cpu"), dtype, frames=1, gradients=True) == ""
    right = fastenh_kernels.encoder_conv
    monkeypatch.setattr(fastenh_kernels, "encoder_conv", lambda *arguments: right(*arguments) * 1.1)
    assert "encoder_conv is 1.0e-01 from the reference" in disproof(torch.device("cpu"), dtype, frames=1)
    right_gradient = fastenh_kernels.upsampled_moments_backward
    wrong = lambda *arguments: right_gradient(*arguments) * 1.2  # noqa: E731
    monkeypatch.setattr(fastenh_kernels, "upsampled_moments_backward", wrong)
    assert "gradient of upsampled_moments is 2.0e-01" in disproof(torch.device("cpu"), dtype, 1, gradients=True)
    monkeypatch.setattr(fastenh_kernels, "encoder_conv", lambda *arguments: 1 / 0)
    assert disproof(torch.device("cpu"), dtype, frames=1) == "encoder_conv fails (ZeroDivisionError: division by zero)"


def test_automatic_choice_needs_the_proof(monkeypatch, caplog):
    """Of the forward pass for inference, of the gradients, too, for training."""
    monkeypatch.setattr(backend, "_triton_obstacle", lambda *device: "")
    gpu = torch.device("cuda", 0)
    wrong = "mask_head is 1.0e+00 from the reference"
    for found, names in (("", ("triton", "triton")), (wrong, ("reference", "reference"))):
        backend._checked_obstacle.cache_clear()
        monkeypatch.setattr(backend.proof, "disproof", lambda *_, found=found, **__: found)
        with caplog.at_level("INFO", logger="fastenh"):
            choices = [backend.choose(gpu, training=training) for training in (False, True, False, True)]
        assert tuple(choice.name for choice in choices) == names * 2
        assert all(found in choice.reason for choice in choices)
    backend._checked_obstacle.cache_clear()
    monkeypatch.setattr(backend.proof, "disproof", lambda *_, gradients: wrong if gradients else "")
    assert [backend.choose(gpu, training=training).name for training in (False, True)] == ["triton", "reference"]
    backend._checked_obstacle.cache_clear()
    assert len(caplog.records) == 4  # a line a device and use
    assert "inference: reference path, mask_head is" in caplog.text


@pytest.mark.parametrize(
    "dtypes",
    [
        pytest.param((("sm_80", ("bfloat16",)), ("sm_90", ("bfloat16", "float32"))), id="some"),
        pytest.param((("sm_80", ()), ("sm_90", ())), id="all", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_compiles_without_spills(dtypes):
    """The gate of ``python -m fastenh_kernels.cubins``, in processes of its own: here the kernels are interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    gates = []
    for arch, names in dtypes:
        command = [sys.executable, "-m", "fastenh_kernels.cubins", "--arch", arch]
        command += [option for name in names for option in ("--dtype", name)]
        gates.append((arch, len(names) or 3, subprocess.Popen(command, **options)))
    for arch, count, gate in gates:
        said = gate.communicate()[0]
        assert gate.returncode == 0, said
        assert "every kernel passes the gate" in said
        assert said.count(arch) >= 55 * count


def test_the_core_on_kernels_is_one_graph_and_exports(interpreted):
    core = build("dpt", SMALL).eval().core
    with torch.no_grad():
        compiled = torch.compile(core, backend="aot_eager", fullgraph=True)
        for frames in (3, 4, 5):  # from the second on, with the length left open
            noisy = randn(1, 257, frames, dtype=torch.complex64)
            torch.testing.assert_close(compiled(noisy), core(noisy))
        exported = torch.export.export(core, (randn(1, 257, 4, dtype=torch.complex64),))
    called = [str(node.target).split(".")[1] for node in exported.graph.nodes if "fastenh" in str(node.target)]
    assert called == ["encoder_front", "encoder_conv", "axis_layer", "axis_layer", "decoder_taps", "mask_head"]
