"""Recipes: presets that flags override, and what a run records of them."""

import json
import re
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest

from apart_fast import METHODS, MODELS
from apart_fast.cli import main, train_command
from apart_fast.errors import UserError
from apart_fast.loaders import DATASETS, LOADERS
from apart_fast.runs.config import DemoConfig, TrainConfig
from apart_fast.runs.recipes import RECIPES


@pytest.mark.parametrize(
    "settings, name, table",
    [(TrainConfig, "recipe", RECIPES), (TrainConfig, "loader", LOADERS), (DemoConfig, "loader", LOADERS)],
)
def test_a_flag_takes_the_names_of_its_table(settings, name, table):
    (field,) = (f for f in fields(settings) if f.name == name)
    kinds = [kind for kind in get_args(field.type) if kind is not type(None)]
    names = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else kinds  # Literal | None, or Literal
    assert set(names) == set(table)


def test_the_help_names_all_that_is_in_the_tables(capsys):
    with pytest.raises(SystemExit) as end:
        train_command(["--help"])
    words = set(re.findall(r"[\w+/-]+", capsys.readouterr().out))
    methods = {f"{name}-K" if takes_steps else name for name, (_, takes_steps, _) in METHODS.items()}
    assert not end.value.code and {*RECIPES, *LOADERS, *DATASETS, *MODELS, *methods} <= words


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_sense_and_says_its_name(name):
    config = TrainConfig.of(name)
    config.check()
    assert config.recipe == name
    assert all(getattr(config, key) == value for key, value in RECIPES[name].items())


def test_paper_is_the_default():
    assert TrainConfig.of("paper") == TrainConfig()


def test_settings_outrank_the_recipe():
    config = TrainConfig.of("strong", ema=0.9)
    assert config.ema == 0.9 and config.label_smoothing == RECIPES["strong"]["label_smoothing"]


@pytest.mark.parametrize("command", [train_command, lambda words: main(["train", *words])])
def test_flags_outrank_the_recipe_on_the_command_line(command, settings, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        command(
            [
                *settings,
                "--recipe",
                "small",
                "--epochs",
                "1",
                "--val-images",
                "6",
                "--train-images",
                "24",
                "--no-test",
                "--test-images",
                "6",
                "--out",
                str(out),
            ]
        )
    assert not end.value.code
    made = json.loads((out / "config.json").read_text())
    assert made["recipe"] == "small" and made["cycle"] == RECIPES["small"]["cycle"]
    assert made["epochs"] == 1 and made["width"] == 0.0625


def test_an_unknown_recipe_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        train_command(["--recipe", "papper"])
    assert end.value.code == 2
    assert "papper" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_recipe():
    saved = TrainConfig.of("small", seed=3)
    assert TrainConfig().resumed(saved) == saved
    assert TrainConfig.of("small").resumed(saved) == saved
    with pytest.raises(UserError, match="--recipe"):
        TrainConfig.of("strong").resumed(saved)
