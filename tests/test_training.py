"""The training loop: it learns, stops, goes on, and survives bad steps."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from conftest import SAMPLES, noise

from fastenh.cli import main
from fastenh.data.feed import Share
from fastenh.models import checkpoint
from fastenh.models.registry import MODELS
from fastenh.train import loop
from fastenh.train.averages import Averages
from fastenh.train.graphs import GraphedStep
from fastenh.train.loop import Trainer, TrainingError
from fastenh.train.optimisers import make_optimiser
from fastenh.train.recipe import OptimiserConfig, RecipeError, load_recipe
from fastenh.train.sources import open_sources
from fastenh.train.state import STATE, RunError, load_state

TINY = [
    "config.channels=16", "config.front_channels=4", "config.head_channels=8", "config.heads=2",
    "config.feed_forward=32", "config.blocks=1", "config.dropout=0.1",
    "data.seconds=0.5", "data.batch_size=2", "run.steps_per_epoch=4", "run.epochs=3", "run.validation_pairs=2",
    "run.scored_pairs=1", "schedule.warmup_epochs=0.5", "schedule.decay_epochs=1", "run.ema=0.5",
]  # fmt: skip


def maker(data, root):
    """Makes trainers whose folders are in ``root``."""

    def make(name="run", *settings, resume=False, share=None):
        given = [f"data.clean={data / 'speech'}", f"data.noise={data / 'noise'}"]
        recipe = load_recipe("dpt-mix", [*TINY, *given, *settings])
        folder = root / name
        folder.mkdir(exist_ok=True)
        made = Trainer(recipe, open_sources(recipe), folder, torch.device("cpu"), share=share)
        if resume:
            made.resume()
        return made

    return make


@pytest.fixture
def trainer(data, tmp_path):
    return maker(data, tmp_path)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing disturbed, for those that are to end like it. It is only looked at."""
    run = maker(data, tmp_path_factory.mktemp("whole"))()
    assert run.train() == "finished"
    return run


def log_of(trainer):
    return [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]


def tensors(path):
    return checkpoint.read(path).tensors


def test_a_run_leaves_checkpoints_and_a_log(whole):
    run = whole
    assert run.steps == 12
    epochs = [event for event in log_of(run) if event["kind"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2, 3]
    assert all(math.isfinite(event["valid_loss"]) and "valid_si_sdr" in event for event in epochs)
    found = checkpoint.read(run.folder / "best.safetensors")
    assert found.training["steps"] == max(event["step"] for event in epochs if event["best"])
    assert "speech" not in json.dumps(found.training["recipe"]["data"])  # no paths
    checkpoint.load(run.folder / "last.safetensors")


def test_the_plateau_lowers_the_learning_rate(trainer):
    settings = ("schedule.kind=plateau", "schedule.patience=0", "schedule.factor=0.5", "schedule.warmup_epochs=0")
    run = trainer("run", *settings, "run.steps_per_epoch=1", "run.scored_pairs=0")
    run.plateau.best = -1e9  # no epoch makes progress
    run.train()
    peak = run.recipe.optimiser.learning_rate
    rates = [event["learning_rate"] for event in log_of(run) if event["kind"] == "epoch"]
    assert rates == pytest.approx([peak, peak / 2, peak / 4])


def test_dropout_draws_by_step_and_process(trainer):
    """On one batch and without a learning rate, losses differ by what is dropped and by nothing else."""
    losses = []
    for name, rank in (("first", 0), ("second", 1), ("first again", 0)):
        run = trainer(name, "optimiser.learning_rate=0", "config.dropout=0.5", share=Share(rank, 2))
        batches = itertools.repeat(run.sources.feed.batch(0))
        losses += [run.advance(batches) for _ in range(2)]
    assert losses[:2] == losses[4:]
    assert len(set(losses[:4])) == 4


def test_the_averaged_weights_are_what_is_kept(trainer):
    kept = []
    for decay in ("0", "0.9"):
        run = trainer(decay, f"run.ema={decay}", "run.epochs=1", "run.scored_pairs=0")
        run.train()
        kept.append([tensors(run.folder / f"{name}.safetensors") for name in ("last", "best")])
    (plain, _), averaged = kept
    for weights in averaged:
        assert not torch.equal(weights["head.weight"], plain["head.weight"])
        torch.testing.assert_close(weights["head.weight"], plain["head.weight"], rtol=0, atol=0.02)


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_resuming_is_bit_for_bit_the_undisturbed_run(trainer, whole, stop_at):
    halted = trainer("halted")
    advance = halted.advance

    def stopping_advance(batches):
        loss = advance(batches)
        if halted.steps == stop_at:
            halted._stop.set()
        return loss

    halted.advance = stopping_advance
    assert halted.train() == "interrupted"
    assert halted.steps == stop_at
    resumed = trainer("halted", resume=True)
    assert resumed.train() == "finished"
    for name in ("last", "best"):
        ours, theirs = (tensors(r.folder / f"{name}.safetensors") for r in (resumed, whole))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
    a, b = load_state(whole.folder), load_state(resumed.folder)
    assert a["plateau"] == b["plateau"]


@pytest.mark.parametrize("where", ["update", "_checkpoint", "save_state"])
def test_a_killed_run_resumes_to_the_same_result(trainer, whole, monkeypatch, where):
    """Dead in the middle of the second epoch or of its end: what was written after the first one has to do."""
    killed = trainer("killed")
    owner = {"update": killed.step, "_checkpoint": killed, "save_state": loop}[where]
    original = getattr(owner, where)

    def dying(*arguments):
        if killed.steps > 4:
            raise SystemExit("killed")
        return original(*arguments)

    monkeypatch.setattr(owner, where, dying)
    with pytest.raises(SystemExit):
        killed.train()
    monkeypatch.undo()
    resumed = trainer("killed", resume=True)
    assert resumed.steps == 4
    resumed.train()
    for name in ("last", "best"):
        ours, theirs = (tensors(r.folder / f"{name}.safetensors") for r in (resumed, whole))
        for key in theirs:
            assert torch.equal(ours[key], theirs[key]), key


def test_muon_resumes_bit_for_bit(trainer):
    settings = ("optimiser.kind=muon", "run.epochs=2")
    whole = trainer("whole", *settings)
    whole.train()
    trainer("halted", *settings).train(max_minutes=0)
    resumed = trainer("halted", *settings, resume=True)
    assert resumed.steps == 1
    resumed.train()
    ours, theirs = (tensors(run.folder / "last.safetensors") for run in (resumed, whole))
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key


def test_time_is_up(trainer):
    run = trainer()
    assert run.train(max_minutes=0) == "time is up"
    assert run.steps == 1
    assert (run.folder / "last.safetensors").exists()


def test_early_stopping(trainer):
    run = trainer("run", "optimiser.learning_rate=0", "run.early_stop=1", "run.ema=0", "run.epochs=50")
    run.plateau.best = -1e9
    assert run.train() == "early stopping"
    assert run.steps == 4


def test_bad_steps_are_skipped_and_counted(trainer):
    run = trainer()
    before = {key: value.clone() for key, value in run.step.model.state_dict().items()}
    good, bad = (run.sources.feed.batch(0) for _ in range(2))
    bad[0][0, 0] = math.nan
    assert math.isnan(run.advance(iter([bad])))
    for key, value in run.step.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert run.bad_steps == 1
    assert math.isfinite(run.advance(iter([good])))
    assert run.bad_steps == 0
    for _ in range(9):
        run.advance(iter([bad]))
    with pytest.raises(TrainingError, match="10 steps in a row"):
        run.advance(iter([bad]))
    skipped = [event for event in log_of(run) if event["kind"] == "skipped"]
    assert [event["in_a_row"] for event in skipped] == [1, *range(1, 11)]
    assert [event["step"] for event in skipped] == [0, *range(2, 12)]


def test_the_best_starts_anew_where_losses_cannot_be_compared(trainer):
    trainer().train()
    assert trainer("run", "run.epochs=9", resume=True).plateau.best < math.inf
    assert trainer("run", "mixing.babble=0.5", resume=True).plateau.best == math.inf


def test_a_batch_that_cannot_be_cut_into_equal_parts_is_refused(trainer):
    with pytest.raises(RecipeError, match="cannot be cut into 3 equal parts"):
        trainer("odd", "data.batch_size=4", "run.accumulate=3")


def test_tensorboard_gets_the_figures_where_it_is_installed(trainer, monkeypatch):
    drawn = []

    class SummaryWriter:
        def __init__(self, folder):
            drawn.append(folder)

        def add_scalar(self, name, value, step):
            drawn.append((name, step))

        def flush(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run = trainer()
    run.train()
    assert drawn[0] == str(run.folder / "tensorboard")
    assert {("epoch/valid_loss", 4), ("epoch/valid_loss", 8), ("epoch/valid_si_sdr", 12)} <= set(drawn[1:])


def test_speed_and_finish_are_reported(trainer, monkeypatch):
    monkeypatch.setattr(loop, "_LOG_STEPS", 4)
    run = trainer("run", "run.epochs=2")
    run.train()
    first, second = (event for event in log_of(run) if event["kind"] == "step")
    assert (first["step"], second["step"]) == (4, 8)
    assert first["x_realtime"] == pytest.approx(first["clips_per_second"] * 0.5)
    assert first["time_left"] > second["time_left"] == 0


def test_profile_shows_where_a_step_goes(data, tmp_path):
    folders = ["--clean", data / "speech", "--noise", data / "noise", "--device", "cpu", "--steps", "2"]
    output = call("dpt-mix", *folders, *sets(), "-o", tmp_path / "trace.json", command="profile")
    assert "x real time" in output
    shares = {}
    for part in ("data", "forward", "loss", "backward", "optimiser", "rest"):
        (line,) = [line for line in output.splitlines() if f" {part} " in line]
        shares[part] = float(line.split()[-3])
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert min(shares.values()) >= 0
    assert shares["backward"] > 5
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"data", "forward", "backward"} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def record_rates(optimiser, rates):
    step = optimiser.step
    optimiser.step = lambda: (rates.append(optimiser.param_groups[0]["lr"]), step())


def test_a_branch_ends_at_a_rate_of_zero_and_leaves_its_trunk_alone(trainer):
    trunk = trainer("trunk", "schedule.decay_epochs=0", "run.epochs=5")
    trunk.train()
    kept = (trunk.folder / STATE).read_bytes()
    branch = trainer("branch", "schedule.branch_share=0.35")  # its own epochs and decay do not count
    branch.branch(trunk.folder)
    assert (branch.steps, branch.total_steps, branch.plateau.best) == (20, 28, math.inf)  # 27, in whole epochs
    rates = []
    record_rates(branch.step.optimiser, rates)
    branch.train(max_minutes=0)
    resumed = trainer("branch", "schedule.branch_share=0.35", resume=True)
    record_rates(resumed.step.optimiser, rates)
    assert resumed.train() == "finished"
    peak = resumed.recipe.optimiser.learning_rate
    assert rates == pytest.approx([peak * (8 - n) / 8 for n in range(8)])
    assert (trunk.folder / STATE).read_bytes() == kept
    assert trainer("trunk", "schedule.decay_epochs=0", "run.epochs=6", resume=True).left is None
    with pytest.raises(RunError, match="a branch itself"):
        trainer("twig").branch(branch.folder)
    with pytest.raises(RunError, match="another optimiser than muon"):
        trainer("other", "optimiser.kind=muon").branch(trunk.folder)


def test_damaged_and_foreign_runs_are_refused(trainer):
    run = trainer()
    with pytest.raises(RunError, match="nothing to resume"):
        run.resume()
    run.train(max_minutes=0)
    with pytest.raises(RunError, match="another configuration"):
        trainer("run", "config.channels=32", resume=True)
    state = run.folder / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(RunError, match="damaged"):
        run.resume()


def test_starting_from_a_checkpoint(trainer, tiny_checkpoint):
    run = trainer("run", f"run.init={tiny_checkpoint}")
    for key, value in tensors(tiny_checkpoint).items():
        assert torch.equal(run.step.model.core.state_dict()[key], value)
    with pytest.raises(RunError, match=r"run\.init"):
        trainer("other", f"run.init={tiny_checkpoint}", "config.channels=32")


def call(*arguments, code=0, command="train"):
    result = CliRunner().invoke(main, [command, *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def sets(*extra):
    return [part for setting in [*TINY, *extra] for part in ("--set", setting)]


def test_command(data, tmp_path):
    folders = ["--clean", data / "speech", "--noise", data / "noise"]
    output = call("dpt-mix", "-o", tmp_path / "run", *folders, *sets(), "--device", "cpu")
    assert "mixed on the fly" in output
    assert "validation loss" in output
    assert "finished at step 12" in output
    assert "holds a run; give --resume" in call("dpt-mix", "-o", tmp_path / "run", *folders, *sets(), code=1)
    longer = call("dpt-mix", "-o", tmp_path / "run", *folders, *sets("run.epochs=4"), "--resume")
    assert "changed since the run began: run.epochs\n" in longer
    assert "from step 12" in longer
    assert "finished at step 16" in longer


def test_command_with_pairs(tmp_path):
    folders = ["--noisy", SAMPLES, "--clean", SAMPLES / "clean"]
    valid = ["--valid-noisy", SAMPLES, "--valid-clean", SAMPLES / "clean"]
    output = call("dpt", "-o", tmp_path / "run", *folders, *valid, *sets("run.epochs=1", "config.dropout=0"))
    assert "7 pairs" in output
    assert "finished at step 4" in output


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["dpt-mix"], "give clean speech and noise to mix", 2),
        (["dpt-mix", "--clean", "nowhere", "--noise", "nowhere"], "nowhere, no audio files|no audio files", 1),
        (["dpt", "--noisy", "nowhere", "--clean", "nowhere"], "nowhere: no such file or folder", 1),
        (["dpx"], "no recipe 'dpx'", 2),
        (["dpt", "--set", "run.epoch=1"], "run.epoch: no such key", 2),
        (["dpt", "--device", "cuda:99"], "cannot be used", 2),
        (["dpt-mix", "--resume"], "nothing to resume", 1),
    ],
)
def test_command_errors(tmp_path, arguments, message, code):
    output = call(*arguments, "-o", tmp_path / "run", code=code)
    assert any(part in output for part in message.split("|"))


def test_pairs_that_do_not_belong_together_stop_the_run(tmp_path):
    for index in range(3):
        for side, seed in (("noisy", index), ("clean", index + 50)):
            (tmp_path / side).mkdir(exist_ok=True)
            soundfile.write(tmp_path / side / f"{index}.wav", noise(40_000, seed), 16_000)
    output = call("dpt", "-o", tmp_path / "run", "--noisy", tmp_path / "noisy", "--clean", tmp_path / "clean", code=1)
    assert "do not belong together" in output


@pytest.mark.linux
def test_interrupt_saves_and_exits_cleanly(data, tmp_path):
    arguments = ["dpt-mix", "-o", tmp_path / "run", "--clean", data / "speech", "--noise", data / "noise"]
    program = "from fastenh.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "train", *map(str, arguments), *sets("run.epochs=100000")],
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "best.safetensors").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 0, output
    assert "interrupted at step" in output
    assert load_state(tmp_path / "run")["step"] > 0
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_each_model_learns_on_the_samples(model, tmp_path):
    """A short run of each model, at full size, lowers its loss on the samples."""
    settings = ["data.seconds=1.0", "data.batch_size=3", "run.epochs=8", "schedule.warmup_epochs=1"]
    folders = ["--noisy", SAMPLES, "--clean", SAMPLES / "clean"]
    valid = ["--valid-noisy", SAMPLES, "--valid-clean", SAMPLES / "clean"]
    changes = [part for setting in settings for part in ("--set", setting)]
    call(model, "-o", tmp_path / "run", *folders, *valid, *changes, "--device", "cpu")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [event["valid_loss"] for event in log if event["kind"] == "epoch"]
    assert len(losses) == 8
    assert np.min(losses[4:]) < 0.9 * losses[0], losses


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_graphed_steps_are_those_of_the_step(kind):
    """Of batches before and after the capture, of one of another shape, and with a learning rate that changes."""

    def weights(graphs):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).cuda()
        optimiser = make_optimiser(model, OptimiserConfig(kind=kind, weight_decay=0.1))
        averages = Averages(model, 0.5)

        def differentiate(noisy, clean):
            optimiser.zero_grad()
            loss = (model(noisy) - clean).square().mean()
            loss.backward()
            return loss.detach()

        def update():
            optimiser.step()
            averages.update_parameters(model)

        step = GraphedStep(differentiate, update, model.parameters(), optimiser)
        optimiser.load_state_dict(optimiser.state_dict())  # as a run that goes on does
        found = []
        for number in range(8):
            noisy, clean = torch.randn(2, 5 if number == 6 else 4, 8, device="cuda")
            for group in optimiser.param_groups:
                group["lr"] = 0.1 / (1 + number)
            found.append((step.differentiate if graphs else differentiate)(noisy, clean).item())
            (step.update if graphs else update)()
        assert not graphs or (step._first is not None and step._second is not None)
        assert optimiser.param_groups[0]["lr"] == 0.1 / 8
        return found, model.state_dict(), averages.state_dict()

    torch.testing.assert_close(weights(graphs=True), weights(graphs=False))


def test_what_cannot_be_captured_runs_without_a_graph(caplog, monkeypatch):
    def refuse():
        raise RuntimeError("no stream here\nmore")

    monkeypatch.setattr(torch.cuda, "Stream", refuse)
    updates = []
    step = GraphedStep(
        lambda noisy, clean: noisy.sum() + clean.sum(),
        lambda: updates.append(1),
        [],
        types.SimpleNamespace(param_groups=[]),
    )
    for number in range(6):
        batch = torch.full((2, 3), float(number))
        assert step.differentiate(batch, batch).item() == 12.0 * number
        step.update()
    assert len(updates) == 6
    assert [record.message for record in caplog.records] == [
        "training without a CUDA graph of gradients: no stream here"
    ]
