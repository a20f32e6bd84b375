"""Every number among the flags has bounds, and what is beyond them is refused before anything is made."""

import types
from dataclasses import fields
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from apart_fast.analysis.settings import CollapseConfig, CurvesConfig, GradientsConfig, PerturbationsConfig
from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.plan.settings import PlanConfig
from apart_fast.runs.config import EvaluateConfig, TrainConfig
from apart_fast.units import BOUNDS, check_number

SETTINGS = (TrainConfig, EvaluateConfig, CollapseConfig, PerturbationsConfig, CurvesConfig, GradientsConfig, PlanConfig)


def kinds(annotation):
    """The plain types in a field's."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (tuple, types.UnionType):
        return {kind for part in get_args(annotation) for kind in kinds(part)}
    return {annotation}


def numbers(settings):
    return [name for name, kind in get_type_hints(settings, include_extras=True).items() if kinds(kind) & {int, float}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_number_has_bounds_and_its_default_is_within_them(settings):
    found = numbers(settings)
    assert found and set(found) <= BOUNDS.keys() | {"seed"}
    for field in fields(settings):
        if field.name in BOUNDS and isinstance(field.default, int | float):
            check_number(field.name, field.default, BOUNDS[field.name])


@pytest.mark.parametrize("name", [name for name in numbers(TrainConfig) if name != "seed"])
def test_what_is_beyond_them_is_refused_with_the_flag_and_what_it_takes(name):
    flag, (low, high, *_) = f"--{name.replace('_', '-')}", BOUNDS[name]
    for wrong in (float("nan"), float("inf"), -float("inf"), low - 1, high * 10 + 1, 10**400, -(10**400), True, "1"):
        if wrong is not True and wrong != "1":  # words of a command line are read as numbers
            with pytest.raises(UserError, match=f"^{flag} .*: give "):
                TrainConfig(**{name: wrong}).check()
        with pytest.raises(UserError, match=f"^{name} .*: give "):
            check_number(name, wrong, BOUNDS[name])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --lr inf", "--lr inf is not a finite number: give 0 to 1,000"),
        ("train --weight-decay inf", "--weight-decay inf is not a finite number"),
        ("train --step-decay nan", "--step-decay nan is not a finite number"),
        ("train --ema 1", "--ema 1.0 is too large: give less than 1"),
        ("train --threads 1000000000", "--threads 1000000000 is too large: give at most 1,024"),
        ("train --padding 100000", "--padding 100000 is too large"),
        ("train --width 1e6", "--width 1000000.0 is too large"),
        (f"train --epochs {10**60}", "--epochs 100000000000000000000000000... is too large: give at most 1,000,000"),
        ("train --points", "--points has no value: name at least one, or leave it out"),
        ("evaluate {out}.pt --attacks", "--attacks has no value"),
        ("evaluate {out}.pt --batch-size 0", "--batch-size 0 is too small"),
        ("analyze curves {out} --images 0", "--images 0 is too small: give at least 1"),
        ("analyze perturbations {out} --epochs 3 -1", "--epochs -1 is too small"),
        ("analyze collapse {out} --reference {out} --every 0", "--every 0 is too small"),
    ],
)
def test_the_command_line_refuses_them_before_anything_is_made(capsys, tmp_path, words, line):
    out = tmp_path / "run"
    words = words.format(out=out).split()
    with pytest.raises(SystemExit) as end:
        main([*words, *(["--out", str(out)] if words[0] == "train" else [])])
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2 and error.startswith(f"error: {line}") and "\n" not in error
    assert not list(tmp_path.iterdir())
