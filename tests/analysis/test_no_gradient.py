"""Analyses of networks that hide their gradient say so: what stands there would look robust, or collapsed."""

import pytest
from torch import nn

from apart_fast.analysis import collapse, curves, gradients, output, perturbations
from apart_fast.analysis.settings import CollapseConfig, CurvesConfig, GradientsConfig, PerturbationsConfig
from apart_fast.errors import UserError


class Rounding(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 255).round() / 255)


@pytest.fixture
def hide(monkeypatch):
    for module in (collapse, curves, gradients, perturbations):
        real = module.load_network
        monkeypatch.setattr(module, "load_network", lambda *args, real=real, **more: Rounding(real(*args, **more)))


@pytest.fixture
def saved(monkeypatch):
    """name of the analysis -> its numbers; no pictures are drawn."""
    found = {}
    monkeypatch.setattr(output, "save", lambda out, name, numbers, draw: found.update({name: numbers}) or [])
    return found


@pytest.mark.filterwarnings("ignore:pgd-20. no measure of robustness")
def test_each_analysis_says_it(hide, saved, runs, common, capsys):
    run, reference, line = runs / "apart-0", runs / "pgd-0", "of 12 images have no gradient (epoch"
    collapse.run(CollapseConfig(runs=(run,), reference=reference, every=3, **common))
    said = capsys.readouterr().out
    assert "apart-0: up to 12 " + line in said and "pgd-0: up to 12 of 12 images have no gradient (best.pt)" in said
    assert saved["collapse"]["runs"][0]["points"][0]["no_gradient"] == 12

    gradients.run(GradientsConfig(runs=(run,), every=3, **common))
    assert "apart-0: up to 12 " + line in capsys.readouterr().out
    assert saved["gradients"]["runs"][0]["no_gradient"] == [1]

    curves.run(CurvesConfig(runs=(run,), judge=True, **common))
    assert line in capsys.readouterr().out and any(saved["curves"]["runs"][0]["no_gradient"])

    perturbations.run(PerturbationsConfig(run=run, epochs=(3,), shown=1, **common))
    assert "no_gradient 1.000" in capsys.readouterr().out


def test_nothing_is_said_of_an_honest_network(capsys):
    output.say_blind("run", {}, 12)
    output.say_blind("run", {"epoch 1": 0, "epoch 2": 0}, 12)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_seeds_have_the_bounds_of_a_training(seed):
    with pytest.raises(UserError, match=f"--seed {seed} is out of range"):
        CurvesConfig(runs=(), seed=seed).check()
