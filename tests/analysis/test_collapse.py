"""Robustness drop and transfer."""

import dataclasses
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import tyro

from apart_fast.analysis import collapse
from apart_fast.analysis.directions import noise_delta
from apart_fast.analysis.settings import CollapseConfig
from apart_fast.errors import UserError
from apart_fast.evaluation.judge import evaluate, wilson
from apart_fast.loaders import load_dataset
from apart_fast.runs import checkpoint
from apart_fast.runs.checkpoint import load_network

EPS = 8 / 255


@pytest.fixture
def config(runs, common):
    return CollapseConfig(runs=(runs / "apart-0",), reference=runs / "pgd-0", **common)


@pytest.fixture
def second_seed(runs, change, tmp_path):
    """A copy of the run as if of another seed, without its second epoch and with other last weights."""
    path = shutil.copytree(runs / "apart-0", tmp_path / "apart-1")
    change(path, seed=1)
    (path / "weights" / "epoch-0002.pt").unlink()
    shutil.copy(path / "weights" / "epoch-0001.pt", path / "weights" / "epoch-0003.pt")
    return path


# ---- numbers


def point(epoch, accuracy, transfer=0.5, n=1000):
    low, high = wilson(round(accuracy * n), n)
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
        report = evaluate(model, split.images, y, attacks=("clean", "pgd-20"), progress=False)
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
    counts = {"clean": 3, "pgd-20": 1, "no-gradient": 2}
    same = collapse._point(1, counts, noise, right, reference)
    assert same["no_gradient"] == 2
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


# ---- going on


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
    state["model"] = {name: (value * 0.5).to(value.dtype) for name, value in state["model"].items()}
    checkpoint.save(run / "weights" / "epoch-0002.pt", state)
    collapse.compute(config)
    assert len(judged) == 1
    config = dataclasses.replace(config, every=5)
    collapse.compute(dataclasses.replace(config, reference=run))
    assert len(judged) == 1  # another reference is no reason to attack the runs again
    for count, settings in enumerate(({"eps": "2/255"}, {"images": 9}, {"seed": 1}), 2):
        collapse.compute(dataclasses.replace(config, **settings))
        assert len(judged) == count


# ---- errors, picture, command


def test_collapse_refuses_bad_input_in_one_line(config, runs, change, tmp_path):
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
