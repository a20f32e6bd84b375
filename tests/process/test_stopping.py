"""Stop signals: a line and the shell's exit code wherever a command is; a second request; what is ignored stays so."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apart_fast.cli import guarded
from apart_fast.errors import Interrupted
from apart_fast.loaders import Split, make_loader
from apart_fast.process import stopping
from apart_fast.process.stopping import EXIT, NOTE, STOP_SIGNALS, StopSignals


def send(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def ends(monkeypatch):
    """Where the process would have ended: (line, code)."""
    found = []
    monkeypatch.setattr(stopping.os, "write", lambda descriptor, line: found.append(line.decode()))
    monkeypatch.setattr(stopping.os, "_exit", found.append)
    return found


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_command_ends_in_a_line_with_the_shells_code(capsys, signum):
    before = [signal.getsignal(s) for s in STOP_SIGNALS]
    undone = []

    def command():
        try:
            send(signum)
            time.sleep(5)
        finally:
            send(signum)  # the same request: shells and `timeout` send it twice
            undone.append(True)

    assert guarded(command) == 128 + signum and undone
    assert capsys.readouterr().err == f"stopped by {signal.Signals(signum).name}\n"
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before


def test_noted_first_then_at_once_then_for_good(clock, ends):
    with StopSignals(NOTE) as signals:
        send(signal.SIGHUP)
        send(signal.SIGHUP)
        assert signals.received == signal.SIGHUP
        clock.now += 2
        with pytest.raises(Interrupted, match="SIGINT"):
            send(signal.SIGINT)
        clock.now += 2
        send(signal.SIGTERM)
    assert signals.received == signal.SIGHUP and ends == ["stopped by SIGTERM\n", 143]


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with StopSignals(NOTE) as signals:
            send(signal.SIGHUP)
        assert signals.received is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_asks_for_none():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(guarded(lambda: None)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_what_was_swallowed_counts_within():
    with StopSignals():
        try:
            send()
        except BaseException:
            pass
        with StopSignals(NOTE) as inner:
            assert inner.received == signal.SIGTERM


def test_what_nobody_could_hear_comes_again(capsys):
    class Going:
        def __del__(self):
            send()
            time.sleep(0)

    def command():
        del (lambda: [Going()])()[0]
        time.sleep(5)

    assert guarded(command) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_other_complaints_of_that_kind_are_heard(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("broken")

    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: heard.append(str(args.exc_value)))
    assert guarded(lambda: Broken() and None) == 0
    assert heard == ["broken"]


def test_within_an_import_the_process_ends_at_once(ends):
    with StopSignals(EXIT):
        send()
    assert ends == ["stopped by SIGTERM\n", 143]


WHILE_IMPORTED = """
import os, signal, sys
_, number, module = sys.argv
sys.argv[1:] = ["check"]

class Finder:
    def find_spec(name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Finder)
from apart_fast.cli import main
main()
"""


@pytest.mark.parametrize("signum, module", [(signal.SIGTERM, "tyro"), (signal.SIGINT, "torch")])
def test_a_process_that_still_imports_ends_in_a_line(signum, module):
    command = [sys.executable, "-c", WHILE_IMPORTED, str(int(signum)), module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (128 + signum, f"stopped by {signum.name}\n")


AT_THE_END = """
import atexit, os, signal, sys
from apart_fast import cli
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))  # what the interpreter does then takes a moment
cli.guarded = lambda command: 0
cli.main()
"""


def test_a_signal_after_the_work_does_not_change_the_exit_code():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def _children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_workers_of_a_loader_leave_signals_to_their_parent():
    split = Split(torch.zeros(24, 4, 4, 3, dtype=torch.uint8), torch.zeros(24, dtype=torch.int64))
    loader = make_loader("dataloader", split, batch_size=4, seed=0, workers=2)
    resource_tracker.ensure_running()  # a child of its own, which the first loader of a process may start
    before = _children()
    batches = loader.epoch(0)
    count = len(next(batches)) + len(next(batches))  # one of each worker: both have begun
    children = _children() - before
    for child in children:
        for signum in STOP_SIGNALS:
            os.kill(int(child), signum)
    assert len(children) == 2 and count + sum(len(batch) for batch in batches) == 24
    loader.close()
    assert np.all([not os.path.exists(f"/proc/{child}") for child in children])


def test_a_worker_whose_parent_was_killed_in_a_transfer_says_nothing(tmp_path):
    """It serves memory to its parent in a thread, which the parent leaves in the middle of the handshake."""
    told, tell = os.pipe()
    ended, end = os.pipe()
    if not (pid := os.fork()):
        sys.stderr = open(tmp_path / "err.txt", "w", buffering=1)
        stopping.leave_to_parent()
        os.write(tell, DupFd(0)._id[0].encode())
        os.read(ended, 1)
        time.sleep(0.1)
        os._exit(0)
    with socket.socket(socket.AF_UNIX) as parent:
        parent.connect(os.read(told, 200).decode())
    os.write(end, b"x")
    os.waitpid(pid, 0)
    assert (tmp_path / "err.txt").read_text() == ""
