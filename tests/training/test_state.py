"""What a resumed run takes over, and what it must not."""

import json
import os
import signal

import pytest
import torch

from apart_fast.cli import main
from apart_fast.runs import checkpoint
from apart_fast.step.optimizer import SGD
from apart_fast.training import trainer as trainer_module
from apart_fast.training.average import WeightAverage
from apart_fast.training.trainer import Trainer


def run(*words, code=0):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert (end.value.code or 0) == code


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer_module, "finish", lambda *_: {})


def test_best_weights_of_an_abandoned_epoch_are_not_called_another_epochs(settings, tmp_path, monkeypatch):
    """Killed between best.pt and last.pt; done again, the epoch is worse (as bits may be on a GPU)."""
    out, step = tmp_path / "run", Trainer.step

    def stopping(self, batch):
        step(self, batch)
        if self.global_step == 11:  # the last step of the second epoch: it is judged before the run stops
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", stopping)
    run("train", *settings, "--val-every", "1", "--out", out, code=143)
    monkeypatch.setattr(Trainer, "step", step)
    state = checkpoint.load(out / "last.pt")
    assert state["progress"]["epoch"] == 2
    # as if the kill had come in the third epoch, after best.pt and before last.pt
    state["progress"] |= {"best_epoch": 1, "best_accuracy": 1.0, "best_by": "validation"}
    checkpoint.save(out / "last.pt", {name: value for name, value in state.items() if name != "format"})
    best = checkpoint.load(out / "best.pt")
    checkpoint.save(out / "best.pt", {name: v for name, v in best.items() if name != "format"} | {"epoch": 3})
    run("train", "--resume", out)
    progress = checkpoint.load(out / "last.pt")["progress"]
    best = checkpoint.load(out / "best.pt")
    assert progress["best_epoch"] == best["epoch"] == 3 and progress["best_accuracy"] < 1
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert progress["best_accuracy"] == last["val_pgd20"]
    assert torch.equal(best["model"]["conv1.weight"], checkpoint.load(out / "last.pt")["model"]["conv1.weight"])


def test_velocities_that_do_not_fit_change_nothing():
    parameters = [torch.zeros(2), torch.zeros(3)]
    optimizer = SGD(parameters, momentum=0.9)
    with pytest.raises(ValueError, match="momentum buffer of shape"):
        optimizer.load_velocities([torch.ones(2), torch.ones(4)])
    with pytest.raises(ValueError):
        optimizer.load_velocities([torch.ones(2)])
    assert not any(v.any() for v in optimizer.velocities())


def test_an_average_takes_over_buffers_of_every_dtype():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3))
    average = WeightAverage(model, 0.9)
    model(torch.rand(2, 3, 4, 4))
    average.schedule(0)
    average.update()
    for mine, theirs in zip(average.model.buffers(), model.buffers(), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    assert int(average.model[0].num_batches_tracked) == 1
