"""Training runs from the command line: records, resuming after any end, and what is judged."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from apart_fast.cli import main
from apart_fast.parallel.world import World
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.training import run as run_module
from apart_fast.training.trainer import Trainer
from apart_fast.training.watch import Judge

ROOT = Path(__file__).parent.parent.parent


# not importorskip: importing ffcv by hand sets torch's threads to 1
needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed: pip install apart_fast[ffcv]")


def run(*words, code=0):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert (end.value.code or 0) == code


def weights(folder):
    state = checkpoint.load(folder / "last.pt")
    tensors = {**state["model"], **{f"apart.{k}": v for k, v in state["apart"].items()}}
    if state["average"] is not None:
        tensors |= {f"average.{k}": v for k, v in state["average"].items()}
    return tensors | {f"velocity.{i}": v for i, v in enumerate(state["optimizer"])}


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds"), line.pop("images_per_second")
    return lines


def assert_same_run(a, b):
    for (name, mine), theirs in zip(weights(a).items(), weights(b).values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert metrics(a) == metrics(b)


@pytest.fixture(scope="session")
def finished(settings, tmp_path_factory):
    """A run that nothing stopped, with an average of the weights."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run("train", *settings, "--ema", "0.9", "--out", out)
    return out


def test_a_run_leaves_its_records(finished):
    for name in ("config.json", "environment.json", "summary.json", "last.pt", "best.pt", "curves.png"):
        assert (finished / name).stat().st_size > 0
    assert (finished / "perturbations.png").stat().st_size > 0
    assert list((finished / "tensorboard").glob("events*"))
    assert not list(finished.glob(".*"))  # nothing half-written is left
    summary = json.loads((finished / "summary.json").read_text())
    lines = metrics(finished)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"loss", "start_loss", "train_accuracy", "alpha", "alpha_omega", "alpha_blocks"} <= lines[0].keys()
    assert "val_pgd20" in lines[2] and "val_pgd20" not in lines[0] and "probe_pgd10" in lines[0]
    assert summary["test"]["last"]["attacks"]["pgd-20"]["n"] == 12
    assert summary["best"]["by"] == "validation" and summary["method"] == "apart"
    assert json.loads((finished / "environment.json").read_text())["torch"] == torch.__version__


KILLED = """
import os, signal, sys, torch
torch.backends.mkldnn.set_flags(False)  # as in conftest.py
from apart_fast.training import trainer
from apart_fast.cli import main
step = trainer.Trainer.step
def deadly(self, batch):
    if self.global_step == int(os.environ["KILL_AT"]):
        self.keeper.wait()  # the checkpoint of the epoch before
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, batch)
trainer.Trainer.step = deadly
main(sys.argv[1:])
"""


@pytest.mark.parametrize("at, epochs_done", [(9, 1), (2, None)])  # in the second epoch; before any checkpoint
def test_killed_in_mid_epoch_and_resumed_gives_the_same_bits(finished, settings, tmp_path, at, epochs_done):
    out = tmp_path / "killed"
    words = ["train", *settings, "--ema", "0.9", "--out", str(out)]
    environment = os.environ | {"KILL_AT": str(at)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], cwd=ROOT, capture_output=True, timeout=300, env=environment
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (
        checkpoint.load(out / "last.pt")["progress"]["epoch"] if (out / "last.pt").exists() else None
    ) == epochs_done
    (out / ".last.pt.killed.apart_fast.tmp").write_bytes(b"half a checkpoint")
    run("train", "--resume", out)
    assert_same_run(out, finished)
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize("stop, at", [(signal.SIGHUP, 8), (signal.SIGINT, 6), (signal.SIGTERM, 11)])
def test_a_signal_writes_a_checkpoint_and_resumes_in_mid_epoch(finished, settings, tmp_path, monkeypatch, stop, at):
    out, step = tmp_path / "stopped", Trainer.step

    def stopping(self, batch):
        if self.global_step == at:
            os.kill(os.getpid(), stop)
        step(self, batch)

    monkeypatch.setattr(Trainer, "step", stopping)
    run("train", *settings, "--ema", "0.9", "--out", out, code=128 + stop)
    monkeypatch.setattr(Trainer, "step", step)
    progress = checkpoint.load(out / "last.pt")["progress"]
    assert (progress["epoch"], progress["step"]) == divmod(at + 1, 6)  # at the end of an epoch: after its validation
    assert (progress["epoch_seconds"] > 0) == (progress["step"] > 0)
    run("train", "--resume", out)
    seconds = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    whole = checkpoint.load(out / "last.pt")["progress"]["seconds"]
    assert sum(seconds) == pytest.approx(whole)  # what was done of an epoch before the stop belongs to it
    assert_same_run(out, finished)


@pytest.mark.parametrize("method", ["pgd-2", "atta-1"])
def test_random_starts_and_memories_resume_too(settings, tmp_path, monkeypatch, method):
    words = ["train", *settings, "--method", method, "--epochs", "2", "--no-test", "--loader", "dataloader"]
    run(*words, "--out", tmp_path / "whole")
    step = Trainer.step

    def stopping(self, batch):
        step(self, batch)
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", stopping)
    run(*words, "--out", tmp_path / "stopped", code=143)
    monkeypatch.setattr(Trainer, "step", step)
    run("train", "--resume", tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@needs_ffcv
def test_amp_and_every_loader_give_the_same_run(settings, tmp_path):
    for loader in (["--ffcv"], ["--loader", "resident"], ["--loader", "dataloader"]):
        run("train", *settings, "--amp", "--epochs", "1", "--no-test", *loader, "--out", tmp_path / loader[-1])
    assert_same_run(tmp_path / "--ffcv", tmp_path / "resident")
    assert_same_run(tmp_path / "dataloader", tmp_path / "resident")


def test_threads_are_as_before_after_a_run():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), run_module.machine(TrainConfig(threads=before + 1, device="cpu"), World()):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_float16_trains(settings, tmp_path):
    run("train", *settings, "--amp", "--amp-dtype", "float16", "--epochs", "1", "--no-test", "--out", tmp_path / "r")
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "r").values() if v.is_floating_point())


def test_a_collapse_is_told_and_the_best_weights_stay(settings, tmp_path, monkeypatch, capsys):
    """The judge is replaced by one that sees a collapse at epoch 3."""
    curve = iter([0.5, 0.6, 0.1, 0.1])

    class Result:
        def __init__(self, accuracy):
            self.accuracy = accuracy

    class Report:
        def __init__(self, attacks):
            accuracy = next(curve) if attacks == ("pgd-10",) else 0.05
            self.attacks = {name: Result(accuracy) for name in attacks}

    monkeypatch.setattr(Judge, "__call__", lambda self, split, attacks, amp, progress=False: Report(attacks))
    run("train", *settings, "--epochs", "4", "--val-every", "4", "--no-test", "--out", tmp_path / "r")
    assert "collapsed at epoch 3" in capsys.readouterr().out
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["collapsed_at"] == [3] and summary["best"]["epoch"] == 2
    assert checkpoint.load(tmp_path / "r" / "best.pt")["epoch"] == 2
    assert [line["collapsed"] for line in metrics(tmp_path / "r")] == [False, False, True, True]


def test_evaluate_judges_a_checkpoint(finished, image_folder, tmp_path, capsys):
    out = tmp_path / "report.json"
    words = ["evaluate", finished / "last.pt", "--data-dir", image_folder, "--device", "cpu", "--no-progress"]
    run(*words, "--attacks", "clean", "pgd-3", "--restarts", "2", "--images", "9", "--out", out)
    report = json.loads(out.read_text())
    assert report["n"] == 9 and report["attacks"]["pgd-3"]["correct"] <= report["attacks"]["clean"]["correct"]
    assert "pgd-3" in capsys.readouterr().out


def test_test_images_play_no_part_in_training(settings, image_folder, tmp_path, monkeypatch):
    """Other test images, same run: nothing is chosen on the test set."""
    load = run_module.load_dataset

    def other(*args, **kwargs):
        data = load(*args, **kwargs)
        data.test.images.random_(0, 256)
        return data

    run("train", *settings, "--epochs", "2", "--out", tmp_path / "a")
    monkeypatch.setattr(run_module, "load_dataset", other)
    run("train", *settings, "--epochs", "2", "--out", tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    best = [checkpoint.load(tmp_path / name / "best.pt") for name in "ab"]
    assert best[0]["epoch"] == best[1]["epoch"]
