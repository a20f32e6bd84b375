"""What judging costs beside an epoch: counted, not timed."""

import pytest
import torch

from apart_fast.cli import main
from apart_fast.evaluation import attacks, jobs, judge
from apart_fast.runs.config import TrainConfig
from apart_fast.step.methods import get_method
from apart_fast.training import trainer
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
