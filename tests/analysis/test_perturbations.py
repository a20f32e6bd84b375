"""Pictures of perturbations, and numbers for what the eye sees."""

import dataclasses
import json

import pytest
import torch

from apart_fast.analysis import perturbations
from apart_fast.analysis.directions import fgsm_delta, noise_delta
from apart_fast.analysis.inputs import open_runs
from apart_fast.analysis.perturbations import choose_epochs, correlation
from apart_fast.analysis.settings import PerturbationsConfig
from apart_fast.errors import UserError
from apart_fast.loaders import load_dataset
from apart_fast.runs.checkpoint import load_network

EPS = 8 / 255


def test_correlation_is_pearson_for_each_image():
    a = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    b = torch.stack([2 * a[0] + 1, -a[1], torch.ones(4, 5)])
    found = correlation(a, b)
    assert found[:2].tolist() == pytest.approx([1, -1]) and found[2].isnan()
    c = a.flip(1)
    expected = [torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item() for x, y in zip(a, c, strict=True)]
    assert correlation(a, c).tolist() == pytest.approx(expected, abs=1e-6)


def test_stripes_flat_areas_and_noise_are_told_apart():
    stripes = torch.where(torch.arange(8) % 2 == 0, EPS, -EPS)[None, None, :, None].expand(1, 8, 8, 3)
    halves = torch.where(torch.arange(8) < 4, EPS, -EPS)[None, None, :, None].expand(1, 8, 8, 3)
    noise = noise_delta(torch.full((1, 64, 64, 3), 0.5), EPS, torch.Generator().manual_seed(0))
    found = {name: perturbations.basics(d, EPS) for name, d in (("s", stripes), ("h", halves), ("n", noise))}
    assert (found["s"]["across"].item(), found["s"]["down"].item()) == pytest.approx((-1, 1))
    assert found["h"]["across"].item() > 0.7 and found["h"]["down"].item() == pytest.approx(1)
    assert abs(found["n"]["across"].item()) < 0.05 and abs(found["n"]["down"].item()) < 0.05
    clipped = stripes.clone()
    clipped[0, :2], clipped[0, 2:4] = 0, EPS / 2
    shares = perturbations.basics(clipped, EPS)
    assert shares["at_bound"].item() == 0.5 and shares["zero"].item() == 0.25


def test_a_gradient_on_the_edges_follows_them():
    images = torch.zeros(1, 8, 8, 3)
    images[:, :, 4:] = 1
    found = perturbations.edges(images)
    assert (found[0, :, 3:5] == 0.5).all() and found.sum() == 8  # one edge, down the middle
    gradient = torch.zeros(1, 8, 8, 3)
    gradient[:, :, 3], gradient[:, :, 4] = 2, -2
    assert perturbations.follows_edges(gradient, images).item() == pytest.approx(1)
    assert perturbations.follows_edges(gradient.roll(3, 2), images).item() < 0


def test_images_without_a_value_are_left_out_of_the_mean():
    nan = float("nan")
    found = perturbations.mean_interval(torch.tensor([1.0, nan, 3.0], dtype=torch.float64))
    assert found["mean"] == 2 and found["high"] == pytest.approx(2 + 1.96 / 2**0.5, abs=1e-3)
    assert perturbations.mean_interval(torch.tensor([nan])) == {"mean": None, "low": None, "high": None}


def test_the_epochs_compared(runs):
    (run,) = open_runs([runs / "apart-0"], weights=True)

    def chosen(collapsed, kept, wanted=()):
        records = [{"epoch": e, "collapsed": e in collapsed} for e in range(1, 11)]
        one = dataclasses.replace(run, records=records, weights={epoch: None for epoch in kept})
        return choose_epochs(one, wanted)

    assert chosen({7, 8, 9, 10}, range(1, 11)) == [6, 10]
    assert chosen({7}, (2, 4, 6, 8, 10)) == [6, 10]
    assert chosen(set(), range(1, 11)) == [5, 10]
    assert chosen({1, 2}, range(1, 11)) == [5, 10]  # nothing from before
    assert chosen({9}, (2, 4, 6)) == [4, 6]  # nothing from after
    assert chosen(set(), (3,)) == [3]
    assert chosen({7}, range(1, 11), (9, 2, 9)) == [9, 2]
    with pytest.raises(UserError, match="--epochs 3: apart-0 kept no weights of it; it kept 2, 4"):
        chosen(set(), (2, 4), (2, 3))


def test_shown_images_are_of_many_classes():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert perturbations.spread(labels, 3) == [0, 3, 5]
    assert perturbations.spread(labels, 4) == [0, 1, 3, 5]
    assert perturbations.spread(labels, 99) == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def looks(runs, common):
    return PerturbationsConfig(run=runs / "apart-0", shown=4, **common)


def test_perturbations_of_a_run(runs, looks, image_folder):
    numbers, picture = perturbations.compute(
        dataclasses.replace(looks, epochs=(1, 3), reference=runs / "apart-0", batch_size=9)
    )
    first, last = numbers["epochs"]
    assert (first["epoch"], last["epoch"]) == (1, 3) and last["collapsed"] is False
    assert numbers["reference"]["weights"] == "epoch-0003.pt"
    assert last["like_reference"] == last["like_pgd"] != first["like_reference"]  # the reference is the last epoch
    split = load_dataset("folder", image_folder).test
    x = split.images.float() / 255
    model = load_network(runs / "apart-0" / "weights" / "epoch-0001.pt", torch.device("cpu"))
    delta = fgsm_delta(model, x, split.labels, EPS)
    assert first["at_bound"]["mean"] == pytest.approx((delta.abs() >= 0.999 * EPS).double().mean().item())
    assert first["zero"]["mean"] == pytest.approx((delta == 0).double().mean().item())
    assert -0.3 < numbers["noise"]["across"]["mean"] < 0.3 and "like_pgd" not in numbers["noise"]
    assert [row.name.split("\n")[0] for row in picture.rows] == [
        *("FGSM, epoch 1", "FGSM, epoch 3", "PGD-20, apart network")
    ]
    assert torch.allclose(picture.rows[0].delta, delta[perturbations.spread(split.labels, 4)], atol=1e-7)
    assert picture.classes == ["circle", "circle", "cross", "square"]
    assert len(perturbations.draw(picture).axes) == 4 * 4


def test_the_perturbations_command_writes_numbers_and_pictures(looks, capsys):
    perturbations.run(looks)
    said = capsys.readouterr().out
    assert "apart-0, epoch 2: at_bound" in said and "random noise" in said
    saved = json.loads((looks.out / "perturbations.json").read_text())
    assert saved["reference"] is None and [e["epoch"] for e in saved["epochs"]] == [2, 3]
    assert "like_reference" not in saved["epochs"][0]
    assert (looks.out / "perturbations.png").stat().st_size > 0 and (looks.out / "perturbations.svg").is_file()


def test_perturbations_refuse_bad_input(looks, runs):
    for words, settings in (("--shown 0", {"shown": 0}), ("--eps 0", {"eps": "0"})):
        with pytest.raises(UserError, match=words):
            dataclasses.replace(looks, **settings).check()
    with pytest.raises(UserError, match="kept no weights"):
        perturbations.compute(dataclasses.replace(looks, run=runs / "pgd-0"))
    with pytest.raises(UserError, match="--epochs 9"):
        perturbations.compute(dataclasses.replace(looks, epochs=(9,)))
