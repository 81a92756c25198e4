"""Recipes are checked by name and by type."""

import dataclasses
import json
import math

import pytest

from fastenh.train.recipe import RecipeError, ScheduleConfig, load_recipe, make_recipe, shipped_recipes, to_values
from fastenh.train.schedule import Plateau, learning_rate_share


@pytest.mark.parametrize("name", ["dpt", "crn", "mel_transformer", "stft_transformer", "dpt-mix", "dpt_complex"])
def test_shipped_recipes_load(name):
    assert name in shipped_recipes()
    recipe = load_recipe(name)
    assert recipe.model == name.removesuffix("-mix")
    assert make_recipe(json.loads(json.dumps(to_values(recipe)))) == recipe


def test_dpt_is_the_origins_recipe():
    recipe = load_recipe("dpt")
    assert recipe.optimiser == dataclasses.replace(
        recipe.optimiser, kind="adam", learning_rate=1e-3, weight_decay=1e-5, clip=5.0
    )
    assert (recipe.data.seconds, recipe.data.batch_size) == (3.0, 8)
    assert (recipe.schedule.kind, recipe.schedule.warmup_epochs) == ("plateau", 3.0)
    assert (recipe.run.epochs, recipe.run.early_stop) == (30, 12)
    assert recipe.loss.log_magnitude == 1.0
    assert recipe.loss.si_sdr == recipe.loss.compressed_complex == 0.0


def test_settings():
    changes = ["run.epochs=3", "mixing.snr_db=[0, 5]", "data.noise=noise", "optimiser.kind=adam", "config.channels=64"]
    recipe = load_recipe("dpt-mix", changes)
    assert recipe.run.epochs == 3
    assert recipe.mixing.snr_db == (0.0, 5.0)
    assert recipe.data.noise == ("noise",)
    assert recipe.optimiser.kind == "adam"
    assert recipe.config.channels == 64


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.epoch=3", r"run\.epoch: no such key; there are epochs"),
        ("run.epochs=many", r"run\.epochs: must be a valid integer, not 'many'"),
        ("run.validation_pairs=0", r"run\.validation_pairs: must be greater than or equal to 1, not 0"),
        ("data.seconds=-1", r"data\.seconds: must be greater than 0"),
        ("run.epochs=true", r"run\.epochs: must be a valid integer, not True"),
        ("run.epochs=2.5", r"run\.epochs: must be a valid integer, not 2.5"),
        ("optimiser.kind=sgd", r"optimiser\.kind: must be 'adam', 'adamw' or 'muon', not 'sgd'"),
        ("optimiser.betas=[0.9]", r"optimiser\.betas\.1: Field required"),
        ("optimiser.betas=[0.9, 1]", r"optimiser\.betas\.1: must be less than 1, not 1"),
        ("optimiser.learning_rate=-1", r"optimiser\.learning_rate: must be greater than or equal to 0, not -1"),
        ("optimiser.learning_rate=nan", r"optimiser\.learning_rate: must be a finite number, not nan"),
        ("mixing.snr_db=[0, 'x']", r"mixing\.snr_db\.1: must be a valid number, not 'x'"),
        ("mixing.snr_db=[20, -5]", r"mixing\.snr_db: must be a range, the smaller number first, not \[20, -5\]"),
        ("mixing.speed=7", r"mixing\.speed: must be less than or equal to 1, not 7"),
        ("mixing.speed=2020-01-01", r"mixing\.speed: must be a valid number, not '2020-01-01'"),
        ("run.ema=3", r"run\.ema: must be less than 1, not 3"),
        ("data.seconds=1e9", r"data\.seconds: must be less than or equal to 600, not 1000000000.0"),
        ("data.noise=[1]", r"data\.noise\.0: must be a valid string, not 1"),
        ("loss.si_sdr=inf", r"loss\.si_sdr: must be a finite number, not inf"),
        ("config.channels=-4", r"config\.channels: must be in 0 to 1,000,000, not -4"),
        ("config.dropout=2", r"config\.dropout: must be in 0 to 1, not 2"),
        ("config.channels=wide", r"config\.channels: must be a valid integer, not 'wide'"),
        pytest.param("run.epochs=" + "[" * 100_000, r"run\.epochs: brackets within brackets", id="brackets"),
        ("config.chanels=3", r"config\.chanels: no such key"),
        ("losses.si_sdr=1", "losses: no such section"),
        ("run.epochs", "must read section.key=value"),
        ("a.b.c=1", "must read section.key=value"),
        ("model.x=1", "model is no section"),
        ("model=dpx", "model: no model named 'dpx'"),
    ],
)
def test_errors_name_the_key(setting, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("dpt-mix", [setting])


def test_all_errors_are_told_at_once():
    changes = ["run.ema=3", "run.epoch=1", "mixing.snr_db=[20, -5]", "losses.x=1", "config.heads=many"]
    with pytest.raises(RecipeError) as caught:
        load_recipe("dpt-mix", changes)
    for path in ("run.ema: ", "run.epoch: ", "mixing.snr_db: ", "losses: ", "config.heads: "):
        assert str(caught.value).count(path) == 1
    assert "\n" not in str(caught.value)


def test_files(tmp_path):
    deep = tmp_path / "deep.toml"
    deep.write_text("x = " + "[" * 100_000)
    with pytest.raises(RecipeError, match=r"deep\.toml: brackets within brackets"):
        load_recipe(str(deep))
    with pytest.raises(RecipeError, match="neither a file nor one of"):
        load_recipe("nobody")
    path = tmp_path / "bad.toml"
    path.write_text("model = ")
    with pytest.raises(RecipeError, match=r"bad\.toml: not valid TOML"):
        load_recipe(str(path))
    path.write_text('model = "crn"\n[run]\nepochs = 2\n')
    assert load_recipe(str(path)).run.epochs == 2


def test_learning_rates():
    hold = ScheduleConfig(kind="hold", warmup_epochs=1, decay_epochs=2)
    shares = [learning_rate_share(hold, step, 10, 6) for step in range(60)]
    assert shares[0] == 0.1
    assert shares[9:40] == [1.0] * 31
    assert shares[50] == 0.5
    assert shares[59] == pytest.approx(0.05)
    cosine = ScheduleConfig(kind="cosine", warmup_epochs=0)
    assert [learning_rate_share(cosine, s, 1, 4) for s in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])
    assert learning_rate_share(ScheduleConfig(kind="plateau", warmup_epochs=0), 1000, 1, 1) == 1.0


def test_plateau_halves_after_patience_and_its_state_resumes():
    config = ScheduleConfig(kind="plateau", patience=2)
    plateau = Plateau()
    assert plateau.update(1.0, config)
    shares = []
    for _ in range(6):
        assert not plateau.update(1.0, config)
        shares.append(plateau.share)
    assert shares == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    assert plateau.idle == 6
    copy = Plateau()
    copy.load_state_dict(json.loads(json.dumps(plateau.state_dict())))
    assert copy.update(0.9, config)
    assert (copy.share, copy.idle, copy.best) == (0.25, 0, 0.9)
    negative = Plateau()  # losses with SI-SDR in them can be below zero
    assert negative.update(-1.0, config)
    assert not negative.update(-1.00001, config)
    assert negative.update(-1.1, config)
    assert not negative.update(math.nan, config)
