"""The models on the Triton kernels beside the same on the reference, in the interpreter or, with -m gpu, on a GPU."""

import copy
import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLES, noise, voice
from parity import randn, relative

from fastenh import Enhancer
from fastenh.enhance.graphs import GraphedModel, filled_count
from fastenh.evaluate.metrics import available, score, si_sdr
from fastenh.models.dpt import DPTConfig
from fastenh.models.dpt_complex import DPTComplexConfig
from fastenh.models.registry import build
from fastenh.train.losses import EnhancementLoss, LossConfig
from fastenh_kernels import backend

SMALL = DPTConfig(channels=64, front_channels=8, head_channels=16, heads=2, feed_forward=64, blocks=1)

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")


@pytest.mark.gpu
def test_graphs_give_what_the_model_gives():
    model = build("dpt", SMALL).eval().folded().cuda()
    graphed = GraphedModel(model, 4000, 1000)
    with torch.inference_mode():
        for count, length in ((3, 4000), (1, 4000), (4, 4000), (3, 5000), (3, 4000), (2, 4100), (4, 5000)):
            waveforms = torch.randn(count, length, device="cuda")
            torch.testing.assert_close(graphed(waveforms), model(waveforms), rtol=1e-4, atol=1e-5)
    assert sorted(graphed._graphs) == [(4000, 1), (4000, 4), (5000, 4)]


class Doubled(GraphedModel):
    """Captures nothing: a graph that doubles what it is given."""

    class Graph:
        def __init__(self, given, result):
            self.given, self.result = given, result

        def replay(self):
            torch.mul(self.given, 2, out=self.result)

    def _capture(self, given):
        result = torch.empty_like(given)
        return self.Graph(given, result), given, result


def test_lengths_by_the_grain_have_graphs_and_others_run_without(monkeypatch):
    monkeypatch.setattr("fastenh.enhance.graphs._OTHERS", 3)
    graphed = Doubled(lambda waveforms: 3 * waveforms, 4000, 1000)

    def is_graphed(count, length):
        waveforms = torch.randn(count, length)
        found = graphed(waveforms)
        has = (length, filled_count(count)) in graphed._graphs
        assert torch.equal(found, (2 if has else 3) * waveforms)
        return has

    assert [is_graphed(count, 5000) for count in (1, 3, 4)] == [True, True, True]
    # by the grain, not by it, a fourth graph of another length, the length itself, one that is there
    assert [is_graphed(1, length) for length in (2000, 100, 3000, 4000, 2000)] == [True, False, False, True, True]
    assert sorted(graphed._graphs) == [(2000, 1), (4000, 1), (5000, 1), (5000, 4)]


def test_windows_are_filled_up_to_a_power_of_two():
    assert [filled_count(n) for n in (1, 2, 3, 4, 5, 16, 17)] == [1, 2, 4, 4, 8, 16, 32]


def test_the_model_is_the_same_on_both_paths(interpreted):
    """Tiny model: SI-SDR between the two outputs, and of each against the clean signal."""
    torch.manual_seed(0)
    model = build(
        "dpt", DPTConfig(channels=64, front_channels=8, head_channels=16, heads=2, feed_forward=64, blocks=1)
    ).eval()
    clean = voice(700)
    noisy = clean + noise(700)
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


def test_training_is_one_graph(interpreted):
    """Forward pass and loss of a tiny model under torch.compile; every gradient against float64."""
    torch.manual_seed(0)
    model = build("dpt", dataclasses.replace(SMALL, dropout=0.0)).train()
    double = copy.deepcopy(model).double()
    clean = torch.from_numpy(voice(200))[None]
    noisy = clean + torch.from_numpy(noise(200))[None]

    def loss_of(model, noisy, clean):
        return EnhancementLoss(LossConfig()).to(noisy.dtype)(model(noisy), clean, noisy)

    torch.compile(loss_of, backend="aot_eager", fullgraph=True)(model, noisy, clean).backward()
    loss_of(double, noisy.double(), clean.double()).backward()
    before_a_norm = ("front.bias", "encoder.bias", "decoder.bias")  # a batch norm takes these away again
    pairs = [(p.grad, q.grad, name) for (name, p), q in zip(model.named_parameters(), double.parameters(), strict=True)]
    compared = {name: relative(p, q) for p, q, name in pairs if not name.endswith(before_a_norm)}
    assert len(compared) == 35
    assert max(compared.values()) < 1e-4, compared


def test_training_of_dpt_complex_is_one_graph(interpreted):
    """In mixed precision, without layers: its skips come out of autograd functions around the operators."""
    torch.manual_seed(0)
    core = build("dpt_complex", DPTComplexConfig(conv_channels=16, bands=16, blocks=0)).train().core
    spectrum = torch.randn(1, 257, 3, dtype=torch.complex64)
    found = []
    for step in (core, torch.compile(core, backend="aot_eager", fullgraph=True)):
        core.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = step(spectrum)
        out.abs().sum().backward()
        found.append([out.detach(), *(parameter.grad.clone() for parameter in core.parameters())])
    assert all(map(torch.equal, *found))


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


def test_the_core_on_kernels_is_one_graph_and_exports(interpreted):
    core = build("dpt", SMALL).eval().core
    with torch.no_grad():
        compiled = torch.compile(core, backend="eager", fullgraph=True)  # the export asks the rest of an operator
        for frames in (2, 3):  # the second time with the length left open
            noisy = randn(1, 257, frames, dtype=torch.complex64)
            ours = compiled(noisy)
            with backend.use_backend("reference"):
                torch.testing.assert_close(ours, core(noisy), rtol=1e-4, atol=1e-5)
        exported = torch.export.export(core, (randn(1, 257, 4, dtype=torch.complex64),))
    called = [str(node.target).split(".")[1] for node in exported.graph.nodes if "fastenh" in str(node.target)]
    assert called == ["encoder_front", "encoder_conv", "axis_layer", "axis_layer", "decoder_taps", "mask_head"]
