"""`--grad-accum`: k batches of B make the update that one batch of k B makes, where nothing looks at the batch."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from apart_fast import MODELS, Apart
from apart_fast.cli import main
from apart_fast.runs import checkpoint
from apart_fast.training.accumulate import Accumulation
from apart_fast.training.keep import Keeper
from apart_fast.training.trainer import Trainer


class Plain(nn.Module):
    """Without BatchNorm, so that a batch is the sum of its parts."""

    perturbation_points = ("relu:output",)

    def __init__(self, classes, **_more):
        super().__init__()
        self.conv, self.relu, self.conv1 = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2)
        self.linear = nn.Linear(6, classes)

    def forward(self, x):
        return self.linear(torch.tanh(self.conv1(self.relu(self.conv(x)))).mean((2, 3)))


def test_parts_of_a_batch_make_its_step_in_float64():
    """Weights' gradients, step sizes and omega, with parts of 4, 4 and 2 images."""
    made = []
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 12, 12, 3), dtype=torch.uint8, generator=generator)
    labels, indices = torch.arange(10) % 3, torch.arange(10)
    offsets, flips = torch.randint(0, 5, (10, 2), generator=generator), torch.arange(10) % 2 == 0
    for parts in ([10], [4, 4, 2]):
        torch.manual_seed(0)
        model = Plain(3).double()
        apart = Apart(model, 10, (12, 12, 3), padding=2, dtype=torch.float64, eta=1e-3)
        apart.alpha, apart.alpha_omega = 1e-2, 2e-2
        accumulation = Accumulation(len(parts), model, apart.sizes)
        for part in indices.split(parts):
            model.zero_grad()
            assert apart.alpha.item() == 1e-2  # stands still
            apart.step(images[part], labels[part], part, offsets=offsets[part], flips=flips[part])
            accumulation.add(len(part))
            due = accumulation.full(len(part), last=False)
        assert due
        accumulation.take_means()
        apart.sizes.step(None)
        grads = [p.grad.clone() for p in model.parameters()]
        made.append([*grads, apart.step_sizes.clone(), apart.memory.contents().clone()])
        accumulation.clear()
        assert accumulation.empty and all(p.grad is None for p in model.parameters())
    for whole, summed in zip(*made, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-9, atol=1e-15)
    assert made[0][-2][0] != 1e-2


def test_a_layer_that_only_some_batches_call_keeps_its_gradient():
    """Layers are dropped at random in some networks: the batch that called one need not be the last."""
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)])
    apart = Apart(Plain(3), 4, (12, 12, 3))
    accumulation = Accumulation(2, model, apart.sizes)
    for called, next_called in (((0, 1), (1,)), ((1,), (0,))):
        for layers in (called, next_called):
            model.zero_grad()
            sum(model[i](torch.ones(1, 2)).sum() for i in layers).backward()
            accumulation.add(3)
            accumulation.full(3, last=False)
        accumulation.take_means()
        for i, layer in enumerate(model):
            calls = (i in called) + (i in next_called)
            assert (layer.weight.grad is None) if not calls else torch.all(layer.weight.grad == calls / 2)
        accumulation.clear()
        assert all(p.grad is None for p in model.parameters())


def train(words, code=0):
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, words)])
    assert (end.value.code or 0) == code
    return Path(words[words.index("--out") + 1])


@pytest.fixture
def plain(monkeypatch, settings):
    monkeypatch.setitem(MODELS, "preact_resnet18", Plain)
    return [*settings, "--no-test", "--probe-images", "0", "--epochs", "2", "--lr", "0.1"]


def state(run):
    made = checkpoint.load(run / "last.pt")
    assert made["progress"]["epoch"] == 2
    return {**made["model"], **made["apart"], **{f"v{i}": v for i, v in enumerate(made["optimizer"])}}


def test_a_run_is_that_of_larger_batches(plain, tmp_path):
    """42 images: batches of 12 in parts of 4; the last update of an epoch has fewer."""
    more = ["--ema", "0.9", "--schedule", "onecycle"]
    whole = state(train([*plain, *more, "--batch-size", "12", "--out", tmp_path / "whole"]))
    parts = state(train([*plain, *more, "--batch-size", "4", "--grad-accum", "3", "--out", tmp_path / "parts"]))
    for name in whole.keys() - {"generator"}:
        torch.testing.assert_close(parts[name].float(), whole[name].float(), rtol=2e-3, atol=2e-5, msg=name)
    assert not torch.equal(parts["v0"], torch.zeros_like(parts["v0"]))


def test_a_run_stopped_within_an_update_goes_on_to_the_same_bits(plain, tmp_path, monkeypatch):
    words = [
        *plain,
        "--amp",
        "--amp-dtype",
        "float16",
        "--schedule",
        "cosine",
        "--batch-size",
        "4",
        "--grad-accum",
        "3",
    ]
    whole = state(train([*words, "--out", tmp_path / "whole"]))
    step = Trainer.step

    def stopping(self, batch):
        if self.global_step == 12:  # the second of a group, in the second epoch of 11 steps
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        run = train([*words, "--out", tmp_path / "stopped"], code=128 + signal.SIGTERM)
    assert checkpoint.load(run / "last.pt")["progress"]["step"] == 3
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(run)])
    resumed = state(run)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_checkpoints_lie_between_updates(plain, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Keeper, "due_within_epoch", lambda self: True)
    monkeypatch.setattr(Keeper, "within_epoch", lambda self, paused: kept.append(paused.step))
    train([*plain, "--batch-size", "4", "--grad-accum", "3", "--epochs", "1", "--out", tmp_path / "run"])
    assert kept == [3, 6, 9]
