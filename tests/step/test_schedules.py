"""Schedules against torch's own, and what a run makes of them."""

import math
import warnings

import pytest
import torch

from apart_fast.errors import UserError
from apart_fast.runs.config import TrainConfig
from apart_fast.step.schedules import SCHEDULES, Spanning, Times, Triangle, make_schedule, onecycle, peak_eta

PEAK = 0.2
UPDATES, EPOCHS = 7, 12
TORCHS = {
    "onecycle": lambda optimizer, places: torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=places),
    "cosine": lambda optimizer, places: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, places),
    "multistep": lambda optimizer, places: torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [places // 2, places * 3 // 4]
    ),
}


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("name", TORCHS)
def test_they_are_torchs(name, by_epoch):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK, momentum=0.9)
    each = UPDATES if by_epoch else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = TORCHS[name](optimizer, UPDATES * EPOCHS // each)
    mine = make_schedule(name, Times(UPDATES, EPOCHS, 30), by_epoch)
    for step in range(UPDATES * EPOCHS):
        if step and step % each == 0:
            optimizer.step()
            theirs.step()
        height, momentum = mine.at(step)
        assert PEAK * height == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        assert momentum == pytest.approx(optimizer.param_groups[0]["momentum"], abs=1e-12)


def test_what_they_move_with_by_themselves():
    times = Times(UPDATES, EPOCHS, 5)
    made = {name: make_schedule(name, times) for name in SCHEDULES}
    assert made["triangle"] == Triangle(5 * UPDATES)
    assert [made[name].each for name in ("onecycle", "cosine", "multistep")] == [1, 1, UPDATES]
    assert make_schedule("triangle", Times(UPDATES, 3, 5)) == Triangle(3 * UPDATES)  # no longer than the run


def test_milestones_are_epochs():
    for by_epoch in (False, True):
        schedule = make_schedule("multistep", Times(UPDATES, EPOCHS, 30, (1, 11)), by_epoch)
        heights = [schedule.at(step)[0] for step in range(UPDATES * EPOCHS)]
        rest = (EPOCHS - 2) * UPDATES
        assert heights == pytest.approx([1.0] * UPDATES + [0.1] * rest + [0.01] * UPDATES)


def test_a_run_of_one_epoch_trains():
    assert onecycle(0, 1)[0] == 1
    assert all(make_schedule(name, Times(1, 1, 1), None).at(0)[0] > 0 for name in SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_step_sizes_rate_has_the_same_sum_under_each(name):
    schedule = make_schedule(name, Times(40, 10, 10))
    total = math.fsum(peak_eta(5e-8, schedule) * schedule.at(step)[0] for step in range(400))
    assert total == pytest.approx(5e-8 * 11_730 / 2, rel=1e-9)


def test_the_triangle_keeps_its_bits():
    for cycle in (1, 7, 390, 11_730):
        assert peak_eta(5e-8, Triangle(cycle)) == 5e-8 * 11_730 / cycle


def test_what_makes_no_sense_is_told():
    with pytest.raises(UserError, match="unknown schedule 'step': choose from triangle, onecycle"):
        make_schedule("step", Times(1, 1, 1))
    with pytest.raises(UserError, match="places 0 is too small"):
        Spanning(onecycle, 0)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"schedule_per": "epoch"}, "the first epoch of a triangle would have rate 0"),
        ({"schedule": "cosine", "cycle": 12}, "--cycle is of --schedule triangle, and cosine spans"),
        ({"milestones": (10,)}, "--milestones are of --schedule multistep, not of triangle"),
        ({"schedule": "multistep", "milestones": (10, 30)}, "--milestones 30: the run has 30 epochs"),
        ({"schedule": "multistep", "milestones": (0,)}, "--milestones 0 is too small"),
        ({"schedule": "multistep", "milestones": (1.5,)}, "--milestones 1.5 is not an integer"),
    ],
)
def test_settings_that_contradict_each_other_are_told(settings, line):
    with pytest.raises(UserError, match=line):
        TrainConfig(**settings).check()


@pytest.mark.parametrize("recipe", ["demo", "small"])
def test_a_recipe_with_a_cycle_takes_any_schedule(recipe):
    TrainConfig.of(recipe, schedule="cosine").check()
    TrainConfig.of(recipe, schedule="onecycle", schedule_per="epoch").check()
