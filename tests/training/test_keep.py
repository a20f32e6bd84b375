"""Checkpoints beside the steps: what is in them, when they are due, and what a failing write does."""

import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from apart_fast.errors import UserError
from apart_fast.runs import checkpoint
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training import keep, snapshot
from apart_fast.training.keep import Keeper
from apart_fast.training.saver import Saver
from apart_fast.training.snapshot import HostCopy
from apart_fast.training.state import Progress
from apart_fast.training.trainer import Trainer
from tests.training.test_training import ROOT, assert_same_run, run

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WAIT = 30  # seconds: more than any thread needs here


@pytest.fixture
def slow_disk(monkeypatch):
    """Files are written when `go` is set; `written` holds their names, `most` how many were on their way at once."""
    real, disk = checkpoint.save, SimpleNamespace(go=threading.Event(), written=[], now=0, most=0)

    def save(path, state):
        disk.now += 1
        disk.most = max(disk.most, disk.now)
        assert disk.go.wait(WAIT)
        real(path, state)
        disk.written.append(os.path.basename(path))
        disk.now -= 1

    monkeypatch.setattr(checkpoint, "save", save)
    yield disk
    disk.go.set()


def state_of(*values):
    names = {"model": OrderedDict(a=torch.tensor(values)), "description": {}, "dataset": "none"}
    return names | {"list": [torch.tensor(values), {"n": 1}], "none": None}


# ---- the copy


def test_a_copy_does_not_change_with_what_it_was_made_of():
    layer = torch.nn.BatchNorm2d(3)
    maps = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"model": layer.state_dict(), "omega": maps, "nested": [{"x": torch.arange(3)}], "epoch": 4}
    copy = HostCopy()
    copied, wanted = copy.take(state), [maps.clone(), layer.running_mean.clone()]
    copy.wait_arrived()
    maps.zero_()
    layer.running_mean.fill_(7)
    assert torch.equal(copied["omega"], wanted[0]) and copied["omega"].stride() == maps.stride()
    assert torch.equal(copied["model"]["running_mean"], wanted[1])
    assert copied["nested"][0]["x"].tolist() == [0, 1, 2] and copied["epoch"] == 4
    assert copied["model"]._metadata == state["model"]._metadata  # the version of BatchNorm's entries
    again = copy.take(state)
    assert again["omega"].data_ptr() == copied["omega"].data_ptr() and not again["omega"].any()


def test_without_room_for_a_copy_there_is_none(monkeypatch):
    copy, state = HostCopy(), {"x": torch.zeros(1000)}
    monkeypatch.setattr(snapshot, "available_bytes", lambda: 7999)
    assert copy.take(state) is None
    monkeypatch.setattr(snapshot, "available_bytes", lambda: 8000)
    assert copy.take(state) is not None
    monkeypatch.setattr(snapshot, "available_bytes", lambda: 0)
    assert copy.take(state) is not None  # the room is there already


class OnGpu(torch.Tensor):
    is_cuda = True


def test_on_a_gpu_the_thread_waits_for_the_copy_and_the_host_does_not(monkeypatch):
    """With stand-ins: copies go on the steps' stream, an event behind them, and only `wait_arrived` waits for it."""
    done, pinned, empty = [], [], torch.empty_like

    class Event:
        def __init__(self, blocking):
            assert blocking

        def record(self, stream):
            done.append(f"recorded on {stream}")

        def synchronize(self):
            done.append("waited")

    def plain(like, device, pin_memory=False):
        pinned.append(pin_memory)
        if pin_memory and len(pinned) > 1:
            raise RuntimeError("no more to pin")
        return empty(like.as_subclass(torch.Tensor))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the steps' stream")
    monkeypatch.setattr(snapshot.torch, "empty_like", plain)
    values = torch.arange(5.0).as_subclass(OnGpu)
    copy = HostCopy()
    copied = copy.take({"a": values, "b": values[:2], "on the host": torch.ones(2)})
    assert done == ["recorded on the steps' stream"] and pinned == [True, True, False, False]
    copy.wait_arrived()
    assert done[1:] == ["waited"]
    assert copied["a"].tolist() == [0, 1, 2, 3, 4] and copied["b"].tolist() == [0, 1]


@needs_gpu
def test_steps_on_a_gpu_do_not_reach_into_a_copy():
    values, copy = torch.zeros(2**26, device="cuda"), HostCopy()
    for i in range(5):
        values.fill_(i)
        copied = copy.take({"values": values})
        values.fill_(-1)
        copy.wait_arrived()
        assert copied["values"].is_pinned() and bool((copied["values"] == i).all())


# ---- the thread


def test_a_file_holds_what_was_there_when_it_was_asked_for(tmp_path, slow_disk):
    saver, state = Saver(torch.device("cpu")), state_of(1.0, 2.0)
    saver.save("last", tmp_path / "last.pt", lambda: state)  # comes back though the disk is slow
    assert saver.busy("last") and not (tmp_path / "last.pt").exists()
    state["model"]["a"].zero_()
    slow_disk.go.set()
    saver.wait()
    assert checkpoint.read(tmp_path / "last.pt")["model"]["a"].tolist() == [1, 2]
    assert not saver.busy("last") and saver.cost("last") > 0
    saver.close()


def test_one_file_at_a_time_in_order(tmp_path, slow_disk):
    saver = Saver(torch.device("cpu"))
    for name in ("weights", "best", "last"):
        saver.save(name, tmp_path / name, lambda: state_of(1.0))
    threading.Timer(0.2, slow_disk.go.set).start()
    saver.save("weights", tmp_path / "weights-2", lambda: state_of(2.0))  # waits for the first: its copy is in use
    assert "weights" in slow_disk.written
    saver.wait()
    assert slow_disk.written == ["weights", "best", "last", "weights-2"] and slow_disk.most == 1
    saver.close()


def test_without_room_the_caller_waits_and_the_order_stays(tmp_path, slow_disk, monkeypatch):
    saver = Saver(torch.device("cpu"))
    saver.save("best", tmp_path / "best", lambda: state_of(1.0))
    monkeypatch.setattr(snapshot, "available_bytes", lambda: 0)
    threading.Timer(0.2, slow_disk.go.set).start()
    saver.save("last", tmp_path / "last", lambda: state_of(1.0))
    assert slow_disk.written == ["best", "last"] and slow_disk.most == 1 and saver.cost("last") > 0.1
    saver.close()


@pytest.mark.parametrize("later", ["save", "save another", "wait"])
def test_an_error_of_the_thread_comes_with_the_next_call(tmp_path, monkeypatch, later):
    real, saver, tried = checkpoint.save, Saver(torch.device("cpu")), threading.Event()

    def full(path, state):
        tried.set()
        raise UserError("no space left")

    monkeypatch.setattr(checkpoint, "save", full)
    saver.save("last", tmp_path / "last", lambda: state_of(1.0))
    assert tried.wait(WAIT)
    while saver.busy("last"):
        pass
    monkeypatch.setattr(checkpoint, "save", real)
    with pytest.raises(UserError, match="no space left"):
        if later == "wait":
            saver.wait()
        else:
            name = "last" if later == "save" else "best"
            saver.save(name, tmp_path / name, lambda: state_of(1.0))
    saver.wait()  # told once
    saver.close()


# ---- when


@pytest.fixture
def keeper(tmp_path):
    """A keeper whose saver only notes what it is asked for; `cost` and `busy` are set by the test."""

    def make(**settings):
        parts = SimpleNamespace(device=torch.device("cpu"))
        made = Keeper(TrainConfig(epochs=9, **settings), RunFolder(tmp_path), parts, None)
        made.asked, made.cost, made.busy = [], 0.0, False
        made._saver = SimpleNamespace(
            save=lambda kind, path, collect, write: made.asked.append(kind),
            cost=lambda kind: made.cost,
            busy=lambda kind: made.busy,
            wait=lambda: None,
            close=lambda: None,
        )
        return made

    return make


def test_time_decides_when_the_state_is_kept(keeper, monkeypatch):
    monkeypatch.setattr(keep, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    clock = SimpleNamespace(now=0.0)
    with keeper() as one:
        one.after_epoch(1, stopping=False)  # the first always: nothing is known of what it costs
        assert one.asked == ["last"]
        one.cost = 0.1  # of 5 s it is 2 %
        for now, epoch, kept in ((3, 2, 1), (6, 3, 2), (9, 4, 2), (12, 5, 3)):
            clock.now = now
            one.after_epoch(epoch, stopping=False)
            assert len(one.asked) == kept
        clock.now, one.busy = 100, True
        one.after_epoch(6, stopping=False)
        assert len(one.asked) == 3  # the last one is still being written
        one.after_epoch(7, stopping=True)
        one.after_epoch(9, stopping=False)
        assert len(one.asked) == 5  # a stop and the end wait for it
        one.busy = False


def test_a_long_epoch_is_kept_every_two_minutes(keeper, monkeypatch):
    monkeypatch.setattr(keep, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    clock = SimpleNamespace(now=0.0)
    with keeper() as one:
        kept = []
        for now in range(0, 700, 10):
            clock.now, one.cost = now, (1.0 if now < 300 else 4.0)  # 4 s: 2 % of 200 s
            if one.due_within_epoch():
                one.within_epoch(Progress())
                kept.append(now)
        assert kept == [120, 240, 440, 640]


def test_a_number_of_epochs_wins(keeper, monkeypatch):
    monkeypatch.setattr(keep, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    clock = SimpleNamespace(now=0.0)
    with keeper(checkpoint_every=3) as one:
        one.cost = 1000.0
        kept = []
        for epoch in range(1, 10):
            clock.now += 500
            assert not one.due_within_epoch()
            before = len(one.asked)
            one.after_epoch(epoch, stopping=epoch == 5)
            kept += [epoch] * (len(one.asked) - before)
        assert kept == [3, 5, 6, 9]


# ---- in a run


def test_runs_of_before_keep_their_number_of_epochs(tmp_path):
    config = TrainConfig(checkpoint_every=1, out=tmp_path)
    RunFolder(tmp_path).create(config)
    assert RunFolder.open(tmp_path)[1].checkpoint_every == 1
    (tmp_path / "config.json").unlink()
    RunFolder(tmp_path).create(TrainConfig(out=tmp_path))
    assert RunFolder.open(tmp_path)[1].checkpoint_every is None


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    run("train", *settings, "--ema", "0.9", "--no-test", "--epochs", "2", "--out", out)
    return out


KILLED = """
import os, signal, sys, torch
torch.backends.mkldnn.set_flags(False)  # as in conftest.py
from apart_fast.cli import main
from apart_fast.runs import checkpoint
from apart_fast.training import keep
save, files = checkpoint.save, []
keep.WITHIN, keep.SHARE = 0.0, 1e9  # a checkpoint after every step
def deadly(path, state):
    files.append(path)
    if len(files) < int(os.environ["KILL_AT"]):
        return save(path, state)
    path.with_name(".last.pt.half.apart_fast.tmp").write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save = deadly
main(sys.argv[1:])
"""


@pytest.mark.parametrize("file", [2, 6])
def test_killed_while_a_checkpoint_is_written_and_resumed_gives_the_same_bits(whole, settings, tmp_path, file):
    """Within an epoch: the file before it is whole, and says where the run stood in mid-epoch."""
    out = tmp_path / "killed"
    words = ["train", *settings, "--ema", "0.9", "--no-test", "--epochs", "2", "--out", str(out)]
    environment = os.environ | {"KILL_AT": str(file)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], cwd=ROOT, capture_output=True, timeout=300, env=environment
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    progress = checkpoint.load(out / "last.pt")["progress"]
    assert progress["step"] > 0 or progress["epoch"] > 0
    assert (progress["epoch_seconds"] > 0) == (progress["step"] > 0)
    run("train", "--resume", out)
    assert_same_run(out, whole)
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize("place", ["device", "disk"])
def test_steps_go_on_while_a_checkpoint_is_written(whole, settings, tmp_path, monkeypatch, slow_disk, place):
    """The disk is slow until the second epoch is under way; what is written then is the first one's end."""
    step, seen = Trainer.step, []

    def stepping(self, batch):
        step(self, batch)
        if self.global_step == 6 + 3:
            seen.append((self.keeper._saver.busy("last"), list(slow_disk.written)))
            slow_disk.go.set()
            self.keeper.wait()
            seen.append(checkpoint.load(self.folder.last)["progress"]["epoch"])

    monkeypatch.setattr(Trainer, "step", stepping)
    words = ["--ema", "0.9", "--no-test", "--epochs", "2", "--omega-device", place]
    run("train", *settings, *words, "--out", tmp_path / "run")
    assert seen == [(True, []), 1]
    assert_same_run(tmp_path / "run", whole)


def test_a_disk_that_becomes_full_ends_the_run_in_one_line(settings, tmp_path, monkeypatch, capsys):
    real = checkpoint.save

    def save(path, state):
        if state["kind"] == "training" and state["progress"]["epoch"] == 2:
            raise UserError("no space left for it: free some space")
        real(path, state)

    monkeypatch.setattr(checkpoint, "save", save)
    run("train", *settings, "--checkpoint-every", "1", "--no-test", "--out", tmp_path / "run", code=2)
    assert "free some space" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["epoch"] == 1


def test_a_stop_without_a_checkpoint_is_no_stop_to_go_on_from(settings, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def stopping(self, batch):
        step(self, batch)
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def full(path, state):
        raise UserError("no space left for it: free some space")

    monkeypatch.setattr(Trainer, "step", stopping)
    monkeypatch.setattr(checkpoint, "save", full)
    run("train", *settings, "--no-test", "--out", tmp_path / "run", code=2)
    assert "free some space" in capsys.readouterr().err
