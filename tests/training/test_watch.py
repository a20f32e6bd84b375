"""What judging costs beside an epoch, counted, not timed; and which weights it finds best."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from apart_fast.cli import main
from apart_fast.evaluation import attacks, jobs, judge
from apart_fast.export.stored import read_network
from apart_fast.runs.config import TrainConfig
from apart_fast.step.methods import get_method
from apart_fast.training import trainer, watch
from tests.evaluation.networks import Linear, data


def test_a_run_folds_its_network_once(settings, tmp_path, monkeypatch):
    """Three epochs with a probe each, and validation after each; the last judgements are cut off."""
    folds, real = [], jobs.Folded
    monkeypatch.setattr(jobs, "Folded", lambda *args: folds.append(args) or real(*args))
    monkeypatch.setattr(trainer, "finish", lambda *_: {})
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--val-every", "1", "--out", str(tmp_path / "run")])
    assert not end.value.code and len(folds) == 1


class Counts(dict):
    """Of images that went forward and came back, through a network and its copies."""

    def __deepcopy__(self, memo):
        return self


class Counting(Linear):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def forward(self, x):
        self.counts["forward"] += len(x)
        if x.requires_grad:
            self.counts["backward"] += len(x)
        return super().forward(x)


def test_watching_stays_under_a_tenth_of_the_epoch_in_passes():
    """With the defaults, all images standing to the end; a pass: one image forward, or back to its pixels."""
    config, counts = TrainConfig(), Counts(forward=0, backward=0)
    model, images = Counting(counts).eval(), data(40)[0]
    with torch.no_grad():
        labels = model(images.permute(0, 3, 1, 2) / 255).argmax(1)

    def passes(*names):
        evaluator = judge.Evaluator(model, eps=0, batch_size=128, calls=9)
        evaluator(images, labels, names)
        counts.update(forward=0, backward=0)
        evaluator(images, labels, names)
        return sum(counts.values()) / len(images)

    probe, validation = passes("pgd-10"), passes("clean", "pgd-20")
    assert (probe, validation) == (1 + 2 * 10 + 1, 1 + 2 * 20 + 1)
    watched = config.probe_images * probe + config.val_images * validation / config.val_every
    epoch = (50_000 - config.val_images) * get_method(config.method).passes
    assert watched / epoch < 0.06


def test_a_graph_pays_over_the_epochs_where_one_evaluation_would_not_repay_it(monkeypatch):
    """A probe of 256 images in batches of 128 is 20 batches; 30 epochs of it are 600."""
    asked = []
    monkeypatch.setattr(attacks, "_make_step", lambda model, images, size, batches, step, eps: asked.append(batches))
    images = torch.zeros(256, 8, 8, 3)
    attacks.KeptSteps(1).get(None, images, 128, 20, 0.1, 0.1)
    attacks.KeptSteps(30).get(None, images, 128, 20, 0.1, 0.1)
    assert asked[0] < attacks._GRAPH_FROM <= asked[1]


@pytest.mark.parametrize("better", ["average", "weights"])
def test_the_best_is_the_better_of_weights_and_average(better):
    """By PGD-10 on the validation images; a tie goes to the average."""
    weights, average, saved = nn.Linear(1, 1), nn.Linear(1, 1), []
    accuracies = {weights: [0.3, 0.2, 0.4], average: [0.3, 0.25, 0.3]}
    if better == "average":
        accuracies = {weights: accuracies[average], average: accuracies[weights]}

    def judged(split, names, amp, progress=False, model=average):
        value = accuracies[model].pop(0)
        return SimpleNamespace(attacks={n: SimpleNamespace(accuracy=value if n == "pgd-10" else 0.1) for n in names})

    parts = SimpleNamespace(
        model=weights,
        judged_model=average,
        apart=SimpleNamespace(method=get_method("apart")),
        splits=SimpleNamespace(probe=None, val="val"),
    )
    best = SimpleNamespace(best_accuracy=-1.0, best_epoch=0, best_by="")
    config = TrainConfig(ema=0.9, best_of="both", val_every=1)
    look = watch.EpochWatch(config, parts, judged, watch.CollapseWatch(), best, lambda *what: saved.append(what))
    records = [look(epoch) for epoch in (1, 2, 3)]
    assert saved == [(1, average), (3, {"average": average, "weights": weights}[better])]
    assert (best.best_epoch, best.best_accuracy, best.best_by) == (3, 0.4, "validation")
    assert {"val_clean", "val_pgd20", "val_pgd10", "weights_val_clean", "weights_val_pgd10"} <= records[0].keys()


def test_a_run_keeps_the_better_and_tests_it(settings, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--ema", "0.999", "--best-of", "both", "--schedule", "onecycle", "--schedule-per", "epoch"]
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, *flags, "--val-every", "1", "--test-images", "6", "--out", str(run)])
    assert not end.value.code
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {(r["epoch"], name): r[name] for r in records for name in ("val_pgd10", "weights_val_pgd10")}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["accuracy"] == max(found.values())
    last = torch.load(run / "last.pt")
    best, epoch = torch.load(run / "best.pt")["model"], summary["best"]["epoch"]
    kind = "average" if found[epoch, "val_pgd10"] == summary["best"]["accuracy"] else "model"
    same = all(torch.equal(best[name], last[kind][name]) for name in best)
    assert same == (epoch == len(records))
    words = {"average": "best averaged weights", "model": "best weights"}[kind]
    assert read_network(run / "best.pt").what == words
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--best-of", "both", "--out", str(tmp_path / "other")])
    assert end.value.code == 2 and "give --ema" in capsys.readouterr().err
