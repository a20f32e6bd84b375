"""AutoAttack, where its package is installed."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from apart_fast.errors import UserError
from apart_fast.evaluation import judge
from apart_fast.evaluation.attacks import is_correct, pgd
from apart_fast.evaluation.autoattack import autoattack
from apart_fast.evaluation.judge import evaluate
from apart_fast.runs.config import EvaluateConfig
from tests.evaluation.networks import EPS, Hiding, Linear, Reshaping, data, worst_case

needs_autoattack = pytest.mark.skipif(
    importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is an optional extra"
)


def test_autoattack_missing_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"apart_fast\[autoattack\]"):
        evaluate(Linear(), *data(4), attacks=["autoattack"], progress=False)
    monkeypatch.setitem(judge.RUN, "pgd", lambda *_: pytest.fail("attacked before it was told"))
    with pytest.raises(UserError, match=r"apart_fast\[autoattack\]"):
        evaluate(Linear(), *data(4), attacks=["pgd-1", "autoattack"], progress=False)
    with pytest.raises(UserError, match=r"apart_fast\[autoattack\]"):
        EvaluateConfig(Path("best.pt"), attacks=("clean", "autoattack")).check()


@pytest.fixture
def quick(monkeypatch):
    """AutoAttack of few steps."""
    import pyautoattack

    class Quick(pyautoattack.AutoAttack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.apgd_targeted.n_iter, self.fab.n_iter, self.square.n_queries = 20, 5, 50

    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)


@needs_autoattack
def test_autoattack_takes_a_network_that_views_its_pixels():
    assert evaluate(Reshaping(), *data(4), attacks=["autoattack"], eps=0.5, progress=False).n == 4


@needs_autoattack
def test_autoattack_does_not_take_nan_for_robust(quick):
    class Broken(Linear):
        def forward(self, x):
            bright = x.flatten(1)[:, :1] > images.flatten(1)[:, :1].float().median() / 255
            return super().forward(x).masked_fill(bright, float("nan"))

    images, labels = data(12, 4)
    with pytest.warns(UserWarning, match="logits are NaN"):
        report = evaluate(Broken(4), images, labels, attacks=["clean", "autoattack"], progress=False)
    assert report.attacks["autoattack"].correct <= report.attacks["clean"].correct <= 12 - report.logits_nan < 12


@needs_autoattack
def test_autoattack_says_where_only_its_last_part_could_search(quick):
    images, labels = data(6, 4)
    with pytest.warns(UserWarning, match="autoattack: no measure of robustness"):
        report = evaluate(Hiding("nan", 4), images, labels, eps=1e-4, attacks=["autoattack"], progress=False)
    assert report.attacks["autoattack"].gradient_not_finite == report.attacks["autoattack"].correct > 0


@needs_autoattack
@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_autoattack_with_few_classes(classes, caplog, quick):
    images, labels = data(12, classes)
    model = Linear(classes).eval()
    x = images / 255.0
    wanted = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    robust = autoattack(
        model, x, labels, eps=EPS, num_classes=classes, batch_size=12, seed=0, device=torch.device("cpu")
    )
    assert torch.equal(torch.get_rng_state(), state)
    # a linear model has no masked gradients: nothing may survive that PGD breaks
    attacked = pgd(model, x, labels, eps=EPS, step=EPS / 4, steps=20)
    pgd_robust = is_correct(model(attacked.permute(0, 3, 1, 2)), labels)
    assert not (robust & ~pgd_robust).any()
    if classes == 2:
        assert torch.equal(robust, worst_case(images, labels, EPS))
    assert all(p.grad is None for p in model.parameters())
    assert wanted == [p.requires_grad for p in model.parameters()]
    assert not [record for record in caplog.records if "target classes" in record.message]  # more than there are
