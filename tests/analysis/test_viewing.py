"""Every analysis of a network that takes no channels-last maps."""

import json

import pytest
import torch

from apart_fast.analysis import collapse, curves, gradients, perturbations
from apart_fast.analysis.settings import CollapseConfig, CurvesConfig, GradientsConfig, PerturbationsConfig
from apart_fast.cli import main
from apart_fast.models import MODELS
from apart_fast.models.channels_last import PlainLayout
from apart_fast.runs.checkpoint import load_network
from tests.viewing import Flattening, Viewing


@pytest.fixture
def viewing(settings, tmp_path, monkeypatch):
    """A run of such a network, from the command line, with the weights of its epochs."""
    monkeypatch.setitem(MODELS, "viewing", Viewing)
    out = tmp_path / "viewing"
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--model", "viewing", "--no-test", "--keep-weights", "1", "--out", str(out)])
    assert not end.value.code and (out / "perturbations.png").stat().st_size
    return out


def found(viewing, common, out):
    common = common | {"out": out}
    collapse.run(CollapseConfig(runs=(viewing,), reference=viewing, **common))
    perturbations.run(PerturbationsConfig(run=viewing, reference=viewing, **common))
    curves.run(CurvesConfig(runs=(viewing,), judge=True, **common))
    gradients.run(GradientsConfig(runs=(viewing,), **common))
    names = ("collapse", "perturbations", "curves", "gradients")
    return {name: json.loads((out / f"{name}.json").read_text()) | {"environment": None} for name in names}


def same(a, b):
    """Whether two values of JSON files agree, numbers within rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == pytest.approx(b, rel=1e-3, abs=1e-4) if isinstance(a, float) else a == b


def test_a_network_that_views_its_maps_is_analysed_as_its_twin(viewing, common, tmp_path, monkeypatch):
    mine = found(viewing, common, tmp_path / "mine")
    assert mine["gradients"]["runs"][0]["points"] == ["conv2"]  # named as in the network, not as in what wraps it
    monkeypatch.setitem(MODELS, "viewing", Flattening)
    assert same(mine, found(viewing, common, tmp_path / "twin"))


def test_a_loaded_network_takes_pixels_of_any_layout(viewing):
    network = load_network(viewing / "last.pt", torch.device("cpu"))
    assert isinstance(network, PlainLayout) and not any(module.training for module in network.modules())
    nhwc = torch.rand(3, 12, 12, 3)
    assert torch.equal(network(nhwc.permute(0, 3, 1, 2)), network(nhwc.permute(0, 3, 1, 2).contiguous()))
