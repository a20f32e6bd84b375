"""Robustness drop and transfer, pictures of perturbations, and the perturbations themselves."""

import dataclasses
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import tyro
from torch import nn

import apart_fast
from apart_fast.analysis import collapse, perturbations
from apart_fast.analysis.collapse import CollapseConfig
from apart_fast.analysis.directions import fgsm_delta, input_gradient, noise_delta, pgd_delta
from apart_fast.analysis.perturbations import PerturbationsConfig, choose_epochs, correlation
from apart_fast.analysis.series import load_network, open_series
from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.loaders import load_dataset
from apart_fast.runs import checkpoint

EPS = 8 / 255


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """apart-0, a run with the weights of its 3 epochs; pgd-0, one as if of PGD, without. Not to be altered."""
    folder = tmp_path_factory.mktemp("runs")
    words = [*settings, "--keep-weights", "1", "--no-test", "--out", str(folder / "apart-0")]
    with pytest.raises(SystemExit) as end:
        main(["train", *words])
    assert not end.value.code
    reference = shutil.copytree(folder / "apart-0", folder / "pgd-0")
    shutil.move(reference / "weights" / "epoch-0001.pt", reference / "best.pt")
    shutil.rmtree(reference / "weights")
    change(reference, method="pgd-2")
    return folder


def change(run, **settings):
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(values | settings))


@pytest.fixture
def common(image_folder, tmp_path):
    return dict(data_dir=image_folder, device="cpu", progress=False, out=tmp_path / "out")


@pytest.fixture
def config(runs, common):
    return CollapseConfig(runs=(runs / "apart-0",), reference=runs / "pgd-0", **common)


@pytest.fixture
def second_seed(runs, tmp_path):
    """A copy of the run as if of another seed, without its second epoch and with other last weights."""
    path = shutil.copytree(runs / "apart-0", tmp_path / "apart-1")
    change(path, seed=1)
    (path / "weights" / "epoch-0002.pt").unlink()
    shutil.copy(path / "weights" / "epoch-0001.pt", path / "weights" / "epoch-0003.pt")
    return path


# ---- directions


class Linear(nn.Module):
    """Logits (0, w.x): the worst perturbation of class 0 is eps sign(w), wherever the image lies."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3)))
        with torch.no_grad():
            self.w[0, 0, 0] = 0  # no gradient here

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), (x * self.w).sum((1, 2, 3))], 1)


def some_images(n=6):
    """[n, 4, 5, 3]; a third of the values near enough to 0 or 1 to be clipped."""
    return (torch.rand(n, 4, 5, 3, generator=torch.Generator().manual_seed(4)) * 1.4 - 0.2).clamp(0, 1)


def test_fgsm_and_pgd_reach_the_worst_corner_of_a_linear_model():
    model, x = Linear(), some_images()
    y = torch.arange(6) % 2
    side = torch.where(y == 0, 1.0, -1.0)[:, None, None, None]
    worst = (x + EPS * side * model.w.detach().permute(1, 2, 0).sign()).clamp(0, 1) - x
    for delta in (fgsm_delta(model, x, y, EPS), pgd_delta(model, x, y, EPS)):
        assert torch.allclose(delta, worst, atol=1e-6)
        assert (delta[:, 0, 0, 0] == 0).all()
    assert torch.allclose(pgd_delta(model, x, y, EPS, steps=1), worst.clamp(-EPS / 4, EPS / 4), atol=1e-6)


def test_the_gradient_of_an_image_depends_on_no_other_and_leaves_none_in_the_model():
    model, x, y = Linear(), some_images(), torch.zeros(6, dtype=torch.int64)
    together = input_gradient(model, x, y)
    assert torch.allclose(together[2:3], input_gradient(model, x[2:3], y[2:3]))
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf.permute(0, 3, 1, 2)), y, reduction="sum").backward()
    assert torch.allclose(together, leaf.grad)
    fresh = Linear()
    input_gradient(fresh, x, y)
    assert fresh.w.grad is None and fresh.w.requires_grad and not x.requires_grad


def test_noise_is_eps_with_fair_signs_and_follows_its_generator():
    x = torch.full((20, 8, 8, 3), 0.5)
    draw, again = (noise_delta(x, EPS, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(draw, again) and not torch.equal(draw, noise_delta(x, EPS, torch.Generator().manual_seed(2)))
    assert torch.allclose(draw.abs(), torch.tensor(EPS), atol=1e-6) and abs(draw.sign().mean()) < 0.06
    parts = torch.Generator().manual_seed(1)
    assert torch.equal(draw, torch.cat([noise_delta(part, EPS, parts) for part in x.split(7)]))  # any batch size
    assert (noise_delta(torch.zeros(9, 8, 8, 3), EPS, torch.Generator()) >= 0).all()


# ---- collapse: numbers


def point(epoch, accuracy, transfer=0.5, n=1000):
    low, high = apart_fast.evaluation.judge.wilson(round(accuracy * n), n)
    pgd20 = {"accuracy": accuracy, "low": low, "high": high}
    above = {"difference": transfer - 0.6, "low": transfer - 0.61, "high": transfer - 0.59}
    moved = {"accuracy": transfer, "low": transfer, "high": transfer}
    return {"epoch": epoch, "pgd20": pgd20, "transfer": moved, "above_noise": above, "way_to_noise": transfer / 0.6}


def points(*accuracies, **settings):
    return [point(i, accuracy, 0.1 * i, **settings) for i, accuracy in enumerate(accuracies, 1)]


def test_a_summary_finds_the_first_fall_under_a_third_of_the_best_so_far():
    found = collapse.summarise(points(0.2, 0.3, 0.11, 0.05, 0.4, 0.0))
    assert (found["peak_pgd20"], found["peak_epoch"], found["collapsed_at"]) == (0.4, 5, 4)  # 0.11 > 0.3 / 3
    assert found["transfer_before"] == pytest.approx(0.3) and found["transfer_after"] == pytest.approx(0.4)
    assert found["way_to_noise_after"] == pytest.approx(0.4 / 0.6) and found["last_pgd20"] == 0.0
    calm = collapse.summarise(points(0.2, 0.3, 0.11, 0.4))
    assert calm["collapsed_at"] is None and calm["transfer_before"] is None and calm["peak_epoch"] == 4
    assert collapse.summarise(points(0.2))["collapsed_at"] is None


def test_a_fall_that_chance_explains_is_no_collapse():
    assert collapse.summarise(points(0.03, 0.0, n=100))["collapsed_at"] is None
    assert collapse.summarise(points(0.03, 0.0, n=1000))["collapsed_at"] == 2


def test_the_numbers_are_those_of_a_plain_computation(runs, config, image_folder):
    numbers = collapse.compute(dataclasses.replace(config, batch_size=5))  # the last batch is smaller
    split = load_dataset("folder", image_folder).test
    x, y = split.images.float() / 255, split.labels
    reference = load_network(runs / "pgd-0" / "best.pt", torch.device("cpu"))
    (run,) = numbers["runs"]
    assert [p["epoch"] for p in run["points"]] == [1, 2, 3] and run["group"] == "apart"
    assert numbers["images"] == 12 and numbers["reference"]["weights"] == "best.pt"

    def accuracy(delta):
        with torch.no_grad():
            return (reference((x + delta).permute(0, 3, 1, 2)).argmax(1) == y).double().mean().item()

    generator = torch.Generator().manual_seed(0)
    draws = [accuracy(noise_delta(x, EPS, generator)) for _ in range(5)]
    noise = sum(draws) / 5
    assert numbers["reference"]["noise"]["draws"] == pytest.approx(draws)
    assert numbers["reference"]["noise"]["accuracy"] == pytest.approx(noise)
    assert numbers["reference"]["clean"]["accuracy"] == accuracy(torch.zeros_like(x))
    for p in run["points"]:
        model = load_network(runs / "apart-0" / "weights" / f"epoch-{p['epoch']:04d}.pt", torch.device("cpu"))
        report = apart_fast.evaluate(model, split.images, y, attacks=("clean", "pgd-20"), progress=False)
        for mine, theirs in (("clean", "clean"), ("pgd20", "pgd-20")):
            result = report.attacks[theirs]
            assert p[mine] == {"accuracy": result.accuracy, "low": result.low, "high": result.high}
        leaf = x.clone().requires_grad_()
        F.cross_entropy(model(leaf.permute(0, 3, 1, 2)), y).backward()
        moved = (x + EPS * leaf.grad.sign()).clamp(0, 1) - x
        assert p["transfer"]["accuracy"] == accuracy(moved)
        assert p["above_noise"]["difference"] == pytest.approx(accuracy(moved) - noise)
        assert p["above_noise"]["low"] <= p["above_noise"]["difference"] <= p["above_noise"]["high"]


def test_the_way_to_noise_and_the_paired_interval():
    noise = torch.tensor([1, 1, 1, 0], dtype=torch.bool)
    right = {f"noise-{i}": noise for i in range(5)}
    reference = {"own_fgsm": {"accuracy": 0.25}, "noise": {"accuracy": 0.75}}
    counts = {"clean": 3, "pgd-20": 1}
    same = collapse._point(1, counts, noise, right, reference)
    assert same["way_to_noise"] == 1 and same["above_noise"] == {"difference": 0, "low": 0, "high": 0}
    half = collapse._point(1, counts, torch.tensor([True, True, False, False]), right, reference)
    assert half["way_to_noise"] == 0.5 and half["above_noise"]["difference"] == -0.25
    assert half["above_noise"]["high"] == pytest.approx(-0.25 + 1.96 * (3 / 16) ** 0.5 / 2, abs=1e-4)
    reference["own_fgsm"] = reference["noise"]  # noise does as much harm
    assert collapse._point(1, counts, noise, right, reference)["way_to_noise"] is None


def test_only_every_so_many_epochs_and_the_last(config):
    for every, epochs in ((2, [1, 3]), (5, [3])):
        numbers = collapse.compute(dataclasses.replace(config, every=every))
        assert [p["epoch"] for p in numbers["runs"][0]["points"]] == epochs


# ---- collapse: going on


def forbid(monkeypatch, allowed=0):
    """Let `evaluate` judge so many checkpoints, then stop like Ctrl-C; returns the list of what was judged."""
    judged, evaluate = [], collapse.evaluate

    def counting(model, *args, **kwargs):
        if len(judged) >= allowed:
            raise KeyboardInterrupt
        judged.append(model)
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(collapse, "evaluate", counting)
    return judged


def test_a_stopped_analysis_goes_on_where_it_was(config, tmp_path, monkeypatch):
    whole = collapse.compute(dataclasses.replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        forbid(patch, allowed=2)
        with pytest.raises(KeyboardInterrupt):
            collapse.compute(config)
    with monkeypatch.context() as patch:
        judged = forbid(patch, allowed=1)  # the third checkpoint
        assert collapse.compute(config) == whole and len(judged) == 1
    with monkeypatch.context() as patch:
        forbid(patch)
        patch.setattr(collapse, "fgsm_delta", None)
        assert collapse.compute(config) == whole  # all from the cache


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: "half a fi",
        lambda values: json.dumps([1, 2]),
        lambda values: json.dumps({key: None for key in values}),
        lambda values: json.dumps({key: {name: 13 for name in value} for key, value in values.items()}),  # 12 images
        lambda values: json.dumps({key: {name: "01" for name in value} for key, value in values.items()}),
    ],
)
def test_a_damaged_cache_is_made_anew(config, damage):
    config = dataclasses.replace(config, every=5)  # the last checkpoint alone
    whole = collapse.compute(config)
    file = config.out / "collapse-cache.json"
    values = json.loads(file.read_text())
    file.write_text(damage(values))
    assert collapse.compute(config) == whole
    assert json.loads(file.read_text()) == values


def test_other_weights_and_settings_are_not_taken_from_the_cache(config, runs, tmp_path, monkeypatch):
    run = shutil.copytree(runs / "apart-0", tmp_path / "apart-0")
    config = dataclasses.replace(config, runs=(run,))
    before = collapse.compute(config)
    judged = forbid(monkeypatch, allowed=4)
    shutil.copy(run / "weights" / "epoch-0003.pt", run / "weights" / "epoch-0001.pt")
    after = collapse.compute(config)
    assert not judged  # known under another name: the key is of the contents
    assert after["runs"][0]["points"][0] == before["runs"][0]["points"][2] | {"epoch": 1}
    state = checkpoint.load(run / "weights" / "epoch-0002.pt")
    state.pop("format")
    state["model"] = {name: value * 0.5 for name, value in state["model"].items()}
    checkpoint.save(run / "weights" / "epoch-0002.pt", state)
    collapse.compute(config)
    assert len(judged) == 1
    config = dataclasses.replace(config, every=5)
    collapse.compute(dataclasses.replace(config, reference=run))
    assert len(judged) == 1  # another reference is no reason to attack the runs again
    for count, settings in enumerate(({"eps": "2/255"}, {"images": 9}, {"seed": 1}), 2):
        collapse.compute(dataclasses.replace(config, **settings))
        assert len(judged) == count


# ---- collapse: errors, picture, command


def test_collapse_refuses_bad_input_in_one_line(config, runs, tmp_path):
    def refused(words, **settings):
        bad = dataclasses.replace(config, **settings)
        with pytest.raises(UserError, match=words) as error:
            bad.check()
            collapse.compute(bad)
        assert "\n" not in str(error.value)

    refused("--every 0", every=0)
    refused("--images 0", images=0)
    refused("no runs", runs=())
    refused("kept no weights", runs=(runs / "pgd-0",))
    refused("one run twice", runs=(runs / "apart-0", shutil.copytree(runs / "apart-0", tmp_path / "copy")))
    other = shutil.copytree(runs / "pgd-0", tmp_path / "other")
    change(other, dataset="svhn")
    refused("svhn, apart-0 on folder", reference=other)
    change(other, dataset="folder")
    (other / "weights").mkdir()
    (other / "weights" / "epoch-final.pt").write_bytes(b"not ours")
    summary = json.loads((other / "summary.json").read_text())
    for words, there in (("knows 9 classes", {"num_classes": 9}), ("knows images of", {"image_size": [8, 8]})):
        (other / "summary.json").write_text(json.dumps(summary | {"model": summary["model"] | there}))
        refused(words, reference=other)
    (other / "summary.json").write_text("{}")
    refused("does not say what network", reference=other)
    (other / "summary.json").unlink()
    refused("not finished", reference=other)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_picture_shows_means_over_the_seeds_and_the_collapse(config, runs, second_seed):
    numbers = collapse.compute(dataclasses.replace(config, runs=(runs / "apart-0", second_seed)))
    assert [run["seed"] for run in numbers["runs"]] == [0, 1]
    first, second = ({p["epoch"]: p["pgd20"]["accuracy"] for p in run["points"]} for run in numbers["runs"])
    left, right = collapse.draw(numbers).axes
    mean = lines(left)["apart (mean of 2 seeds)"]
    assert list(mean.get_xdata()) == [1, 3]  # the epochs that both have
    assert list(mean.get_ydata()) == pytest.approx([50 * (first[e] + second[e]) for e in (1, 3)])
    assert not any("published" in label for label in lines(left) | lines(right))  # other data
    noise = numbers["reference"]["noise"]["accuracy"]
    assert list(lines(right)[f"random noise, same size ({noise:.1%})"].get_ydata()) == [0, 0]

    numbers["dataset"] = "cifar10"
    for run, fall in zip(numbers["runs"], (None, 0.01), strict=True):
        run["points"] = [point(1, 0.3), point(2, fall or 0.3, 0.6)]
        run["summary"] = collapse.summarise(run["points"])
    left, right = collapse.draw(numbers).axes
    published = next(line for label, line in lines(right).items() if label.startswith("fgsm, published"))
    assert published.get_ydata()[20] == pytest.approx(100 * (0.73 - 0.794)) and published.get_xdata()[20] == 21
    marks = [line for line in right.get_lines() if line.get_marker() == "X"]
    assert [(*mark.get_xdata(), *mark.get_ydata()) for mark in marks] == [(2, pytest.approx(0))]
    assert "collapse" in [text.get_text() for text in left.get_legend().get_texts()]


def test_a_collapse_is_told(capsys):
    reference = {"noise": {"accuracy": 0.6}}
    told = collapse.describe({"name": "fgsm-0", "summary": collapse.summarise(points(0.4, 0.3, 0.0))}, reference)
    assert told == (
        "fgsm-0: PGD-20 peak 40.0% (epoch 1), collapsed at epoch 3, last 0.0%; transfer 20.0% before, 30.0% after "
        "(random noise 60.0%)"
    )
    told = collapse.describe({"name": "apart-0", "summary": collapse.summarise(points(0.3, 0.4))}, reference)
    assert "no collapse, last 40.0%; transfer 20.0% (random noise 60.0%)" in told


def test_the_collapse_command_writes_numbers_and_pictures(config, capsys):
    words = [*map(str, config.runs), "--reference", str(config.reference), "--out", str(config.out), "--images", "6"]
    words += ["--data-dir", str(config.data_dir), "--device", "cpu", "--no-progress"]
    collapse.run(tyro.cli(CollapseConfig, args=words))
    said = capsys.readouterr().out
    assert said.startswith("apart-0: PGD-20 peak") and "collapse.png" in said
    saved = json.loads((config.out / "collapse.json").read_text())
    assert saved["images"] == 6 and saved["environment"]["torch"] == torch.__version__
    assert {path.name for path in config.out.iterdir()} == {
        *("collapse.json", "collapse.png", "collapse.svg", "collapse-cache.json")
    }


# ---- perturbations


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
    (run,) = open_series([runs / "apart-0"], weights=True)

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
