"""How a training ends when something around it does: a second owner, a folder that goes, output that goes, signals
outside of its loop; and what the next one finds."""

import json
import os
import pty
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apart_fast.errors import UserError
from apart_fast.process.owning import LOCK, owned
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training import events as events_module
from apart_fast.training import finish as finish_module
from apart_fast.training import run as run_module
from apart_fast.training.events import Events
from apart_fast.training.execution import Execution
from apart_fast.training.keep import Keeper
from apart_fast.training.trainer import Trainer
from tests.training.test_training import ROOT, run


@pytest.fixture
def begun(tmp_path):
    """A run that was killed before its first checkpoint, on data that is not here."""
    folder = RunFolder(tmp_path / "begun")
    folder.create(TrainConfig(dataset="folder", out=folder.path, progress=False, device="cpu"))
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOCK}


def line_of(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def no_pictures(monkeypatch):
    """They take most of the time of so small a run."""
    drawn = SimpleNamespace(curves=lambda *_: None, perturbations=lambda *_: None)
    monkeypatch.setattr(finish_module, "pictures", drawn)


# ---- one owner


def test_a_run_is_gone_on_with_once_at_a_time(begun, capsys):
    before = contents(begun.path)
    with owned(begun.path):
        run("train", "--resume", begun.path, code=2)
    assert f"{begun.path} is in use by process {os.getpid()} on " in line_of(capsys)
    assert contents(begun.path) == before and not (begun.path / LOCK).exists()


def test_two_runs_that_begin_in_one_folder(settings, tmp_path, capsys):
    with owned(tmp_path / "run"):
        run("train", *settings, "--out", tmp_path / "run", code=2)
    assert "is in use by process" in line_of(capsys) and not (tmp_path / "run").exists()


def test_a_demo_leaves_another_one_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("apart_fast.commands.demo.load_dataset", lambda *_, **__: None)
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "config.json").write_text('{"recipe": "demo"}')
    for folder in (tmp_path, tmp_path / "apart"):  # a demo, and a run of one that is gone on with
        with owned(folder):
            run("demo", "--loader", "resident", "--out", tmp_path, code=2)
        assert "is in use by process" in line_of(capsys) and (tmp_path / "apart" / "config.json").exists()


# ---- what a killed process left


def test_a_resumed_run_completes_what_a_killed_one_left(begun, monkeypatch):
    def refuse(*_):
        raise UserError("no data")

    (begun.path / "environment.json").unlink()
    (begun.path / "weights").mkdir()
    for name in (
        ".config.json.12.apart_fast.tmp",
        ".last.pt.abc.apart_fast.tmp",
        "weights/.epoch-0001.pt.abc.apart_fast.tmp",
    ):
        (begun.path / name).write_text("half")
    monkeypatch.setattr(run_module, "Trainer", refuse)
    monkeypatch.setattr(run_module, "load_dataset", lambda *_, **__: None)
    run("train", "--resume", begun.path, code=2)
    assert {path.name for path in begun.path.rglob("*")} == {"config.json", "environment.json", "weights"}
    assert "torch" in json.loads((begun.path / "environment.json").read_text())


def test_a_training_that_ends_with_a_line_lets_go_of_its_captured_step(settings, monkeypatch, tmp_path):
    def refuse(_):
        raise UserError("ended")

    closed = []
    monkeypatch.setattr(Execution, "close", lambda self: closed.append(self))
    monkeypatch.setattr(Trainer, "run", refuse)
    run("train", *settings, "--out", tmp_path / "run", code=2)
    assert len(closed) == 1


def test_a_folder_that_cannot_be_written_is_told_before_data_is_read(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "load_dataset", lambda *_, **__: pytest.fail("data was read"))
    (tmp_path / "file").touch()
    for out in ("/proc/nothing/run", tmp_path / "file", tmp_path / "file" / "run"):
        run("train", "--out", out, code=2)
        assert f"cannot write {out}" in line_of(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_resumed_run_says_how_its_data_is_found(begun, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run("train", "--resume", "begun", code=2)
    line = line_of(capsys)
    assert "begun with --data-dir data" in line and "name the folder with --data-dir" in line
    run("train", "--resume", "begun", "--data-dir", "elsewhere", code=2)
    assert "begun with" not in line_of(capsys)


# ---- the folder goes


@pytest.mark.parametrize("how", ["removed", "renamed", "removed at the end"])
def test_a_run_folder_that_goes(no_pictures, settings, tmp_path, monkeypatch, capsys, how):
    out, step, written = tmp_path / "run", Trainer.step, finish_module.write_card

    def stepping(self, batch):
        step(self, batch)
        if self.global_step == 7:
            self.keeper.wait()  # removing would meet what is written
            shutil.rmtree(out) if how == "removed" else out.rename(tmp_path / "renamed")

    def write_card(*arguments):
        written(*arguments)
        shutil.rmtree(out)

    if how == "removed at the end":
        monkeypatch.setattr(finish_module, "write_card", write_card)
    else:
        monkeypatch.setattr(Trainer, "step", stepping)
    run("train", *settings, "--epochs", "2", "--no-test", "--out", out, code=2)
    assert "run was removed or renamed while it was written to" in line_of(capsys)
    assert [path.name for path in tmp_path.iterdir()] == (["renamed"] if how == "renamed" else [])


# ---- output goes


def test_a_run_whose_reader_goes_has_all_its_files(no_pictures, settings, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        os.close(reader)
        run("train", *settings, "--epochs", "1", "--no-test", "--out", tmp_path / "run")
    assert {"card.json", "report.html", "last.pt", "summary.json"} <= {p.name for p in (tmp_path / "run").iterdir()}


SLOW = """
import sys, time, torch
torch.backends.mkldnn.set_flags(False)  # as in conftest.py
from apart_fast.training.trainer import Trainer
step = Trainer.step
def slow(self, batch):
    if self.global_step == 7:
        print("now", flush=True)
    step(self, batch)
    time.sleep(0.1 * (self.global_step >= 7))
Trainer.step = slow
from apart_fast.cli import main
main()
"""


def test_a_terminal_that_is_closed_leaves_a_checkpoint(settings, tmp_path):
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        words = ["train", *settings, "--progress", "--epochs", "50", "--out", str(tmp_path / "run")]
        os.execv(sys.executable, [sys.executable, "-c", SLOW, *words])
    shown = b""
    while b"now" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP, shown.decode()
    assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["step"] > 0


# ---- signals outside of the loop


def test_a_signal_before_the_run_is_there(settings, tmp_path, monkeypatch, capsys):
    def loading(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_module, "load_dataset", loading)
    run("train", *settings, "--omega-device", "disk", "--out", tmp_path / "run", code=143)
    assert line_of(capsys) == "stopped by SIGTERM" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["in the last checkpoint", "while its card is written"])
def test_a_signal_when_all_is_trained(no_pictures, settings, tmp_path, monkeypatch, capsys, when):
    out, after_epoch, written = tmp_path / "run", Keeper.after_epoch, finish_module.write_card

    def keeping(*arguments):
        after_epoch(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    def writing(*arguments):
        written(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        if when == "in the last checkpoint":
            patch.setattr(Keeper, "after_epoch", keeping)
        else:
            patch.setattr(finish_module, "write_card", writing)
        run("train", *settings, "--epochs", "1", "--no-test", "--out", out, code=143)
    assert line_of(capsys) == f"stopped by SIGTERM; go on with --resume {out}"
    assert not (out / "report.html").exists()
    run("train", "--resume", out)
    assert (out / "report.html").exists() and not list(out.glob(".*"))


# ---- TensorBoard's events


def test_events_are_read_by_tensorboard(tmp_path):
    first = Events(tmp_path, 0)
    for step in range(5):
        first.scalar("loss", step / 2, step)
    first.close()
    again = Events(tmp_path, 3)
    again.scalar("loss", 9, 3)
    again.close()
    assert len(list(tmp_path.iterdir())) == 2
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in found] == [(0, 0), (1, 0.5), (2, 1), (3, 9)]


def test_events_that_cannot_be_written_are_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    events = Events(tmp_path / "file", 0)
    monkeypatch.setattr(events_module, "WITHIN", -1.0)
    full = Events(tmp_path, 0)
    full._records._writer.close()
    full._records = events_module.RecordWriter(open("/dev/full", "wb"))
    for one in (events, full):
        one.scalar("loss", 1.0, 1)
        one.scalar("loss", 1.0, 2)
        one.close()
    assert capsys.readouterr().out.count("going on without them") == 2
