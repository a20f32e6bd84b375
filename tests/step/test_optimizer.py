"""Optimiser, schedule and average against torch's own."""

import copy
import math

import pytest
import torch

from apart_fast import Triangle, UserError, scaled_eta
from apart_fast.step.optimizer import SGD
from apart_fast.training.average import WeightAverage
from apart_fast.training.watch import CollapseWatch


@pytest.mark.parametrize("maximize", [False, True])
def test_sgd_is_torchs(maximize):
    torch.manual_seed(0)
    mine = [torch.randn(5, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)]
    theirs = [p.clone() for p in mine]
    a = SGD(mine, lr=0.1, momentum=0.9, weight_decay=0.02, maximize=maximize)
    b = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.02, maximize=maximize)
    for step in range(6):
        lr, momentum = 0.1 + 0.05 * step, 0.9 - 0.02 * step
        a.set(lr, momentum)
        b.param_groups[0].update(lr=lr, momentum=momentum)
        for p, q in zip(mine, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step(), b.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_sgd_velocities_round_trip():
    p = torch.nn.Parameter(torch.ones(3))
    sgd = SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.arange(3.0)
    sgd.step()
    other = SGD([torch.nn.Parameter(torch.ones(3))])
    other.load_velocities(sgd.velocities())
    assert other.velocities()[0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="shape"):
        other.load_velocities([torch.ones(4)])


def test_a_copied_sgd_goes_on():
    p = torch.nn.Parameter(torch.ones(3))
    other = copy.deepcopy(SGD([p], lr=0.1, momentum=0.9))
    (q,) = other.param_groups[0]["params"]
    q.grad = torch.ones(3)
    other.step()
    torch.testing.assert_close(q.detach(), torch.full((3,), 0.9))


def test_an_average_that_follows_is_moved_once_a_step():
    model = torch.nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    averages = [WeightAverage(model, 0.9), WeightAverage(model, 0.9)]
    averages[0].follow(optimizer)
    for step in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1.0 + step)
        optimizer.step()
        for average in averages:
            average.schedule(step)
            average.update()
    for a, b in zip(*(average.model.parameters() for average in averages), strict=True):
        assert torch.equal(a, b)
    assert not optimizer.averaged  # on the CPU


def test_triangle_is_torchs_cyclic_lr():
    steps = 12
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    cyclic = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.0, max_lr=0.2, step_size_up=steps // 2, step_size_down=steps // 2
    )
    triangle = Triangle(steps)
    for step in range(3 * steps):
        height, momentum = triangle.at(step)
        assert 0.2 * height == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        assert momentum == pytest.approx(optimizer.param_groups[0]["momentum"], abs=1e-12)
        optimizer.step()
        cyclic.step()
    assert triangle.height(0) == 0 and triangle.height(steps // 2) == 1


def test_eta_times_steps_stays():
    assert scaled_eta(5e-8, 11_730) == pytest.approx(5e-8)
    assert scaled_eta(5e-8, 1173) == pytest.approx(5e-7)


def test_average_forgets_the_start_and_follows_buffers():
    model = torch.nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.9)
    expected = copy.deepcopy(model.weight.detach())
    for step in range(50):
        with torch.no_grad():
            model.weight.add_(torch.tensor([1.0, -1.0]))
            model.running_mean.add_(1)
        average.schedule(step)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.model.weight.detach(), expected)
    assert average.model.running_mean.tolist() == [50, 50]
    assert not average.model.weight.requires_grad and not average.model.training


def test_collapse_watch():
    watch = CollapseWatch()
    begins = [watch.update(e + 1, a) for e, a in enumerate([0.1, 0.2, 0.3, 0.28, 0.16, 0.02, 0.0, 0.29, 0.1])]
    assert begins == [False, False, False, False, False, True, False, False, True]
    assert watch.epochs == [6, 9] and watch.best == 0.3
    low = CollapseWatch()
    assert not any(low.update(e, a) for e, a in enumerate([0.1, 0.03, 0.1, 0.04]))  # chance, not collapse


@pytest.mark.parametrize(
    "numbers",
    [dict(lr=math.nan), dict(lr=-0.1), dict(lr=math.inf), dict(momentum=1.5), dict(weight_decay=-1.0)],
)
def test_numbers_that_make_no_sense_are_told(numbers):
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match=f"{next(iter(numbers))} of the optimizer .*: give"):
        SGD([p], **numbers)
    sgd = SGD([p], lr=0.1)
    if "weight_decay" not in numbers:
        with pytest.raises(UserError, match=": give"):
            sgd.set(**numbers)
    assert sgd.param_groups[0]["lr"] == torch.tensor(0.1)


def test_groups_that_make_no_sense_are_told():
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match="group 1 of the optimizer has no parameters"):
        SGD([{"params": [p]}, {"params": []}])
    with pytest.raises(UserError, match="group 0 differ in dtype or device"):
        SGD([p, torch.nn.Parameter(torch.ones(3, dtype=torch.float64))])


def test_schedules_that_make_no_sense_are_told():
    for wrong in (0, -5, 2.5, None):
        with pytest.raises(UserError, match=f"cycle {wrong} is "):
            Triangle(wrong)
        with pytest.raises(UserError, match=f"steps {wrong} is "):
            scaled_eta(5e-8, wrong)
    with pytest.raises(UserError, match="momentum nan is not a finite number"):
        Triangle(8, momentum=(0.9, math.nan))
