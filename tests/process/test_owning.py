"""A run folder has one owner at a time, whose lock ends with it; what is removed is not made anew; leftovers go."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apart_fast.errors import UserError
from apart_fast.files import atomic_path, atomic_write, check_held, expand_paths, remove_abandoned
from apart_fast.process import owning
from apart_fast.process.owning import LOCK, owned, without_trace
from apart_fast.runs.config import EvaluateConfig, TrainConfig
from apart_fast.runs.folder import RunFolder

OWNER = """
import sys, time
from pathlib import Path
from apart_fast.process.owning import owned
with owned(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


def test_the_lock_ends_with_its_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"owned\n"
        with pytest.raises(UserError, match=rf"is in use by process {other.pid} on .*: wait until"):
            with owned(tmp_path):
                pytest.fail("two owners")
        other.kill()
    with owned(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_keep_it(tmp_path):
    """The lock belongs to the open file, which a child shares."""
    with owned(tmp_path):
        shared = os.stat(tmp_path / LOCK)
        child = os.fork()
        if child == 0:
            mine = [os.stat(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if alive(int(name))]
            os._exit(any(os.path.samestat(status, shared) for status in mine))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def alive(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(owning.fcntl, "flock", none)
    with owned(tmp_path), owned(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match="cannot write .*choose a folder that can be written"):
        with owned(tmp_path):
            pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        with owned(tmp_path / "file"):
            pass


def test_an_empty_folder_leaves_no_trace(tmp_path):
    with owned(tmp_path / "new"):
        pass
    with without_trace(tmp_path / "other"):
        (tmp_path / "other").mkdir()
    assert not list(tmp_path.iterdir())
    with owned(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    with owned(tmp_path / "new"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_written_to_the_place_of_a_folder_that_is_gone(tmp_path, replaced):
    folder = RunFolder(tmp_path / "run")
    with owned(folder.path):
        folder.write("summary.json", {})
        folder.path.rename(tmp_path / "elsewhere")
        if replaced:
            atomic_write(tmp_path / "made" / "file", "another's")
            (tmp_path / "made").rename(folder.path)
        for write in (
            lambda: folder.write("card.json", {}),
            lambda: folder.append({"epoch": 1}),
            lambda: atomic_write(folder.weights(1), "w"),
        ):
            with pytest.raises(UserError, match="was removed or renamed while it was written to"):
                write()
        assert [path.name for path in tmp_path.rglob("*.json")] == ["summary.json"]
        check_held(tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", *(["run"] if replaced else [])}
    atomic_write(tmp_path / "run" / "file", "as before")


def test_gone_while_a_file_is_written(tmp_path):
    with owned(tmp_path / "run"), pytest.raises(UserError, match="was removed or renamed"):
        with atomic_path(tmp_path / "run" / "last.pt") as temporary:
            temporary.write_text("half")
            for path in (temporary, tmp_path / "run" / LOCK):
                path.unlink()
            (tmp_path / "run").rmdir()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    for name in (".report.html.abc.apart_fast.tmp", ".report.html.x.apart_fast.tmp", ".other.html.abc.apart_fast.tmp"):
        (tmp_path / name).write_text("half")
    with atomic_path(tmp_path / "report.html") as temporary:
        temporary.write_text("whole")
        atomic_write(tmp_path / "report.html", "another's")  # does not take the one in use for a leftover
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", ".other.html.abc.apart_fast.tmp"}
    assert (tmp_path / "report.html").read_text() == "whole"
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}


def test_an_owner_removes_what_killed_ones_left(tmp_path):
    (tmp_path / "weights").mkdir()
    for name in (".config.json.12.apart_fast.tmp", "weights/.epoch-0001.pt.abc.apart_fast.tmp"):
        (tmp_path / name).write_text("half")
    with RunFolder(tmp_path).owned():
        assert {path.name for path in tmp_path.rglob("*")} == {LOCK, "weights"}


def test_every_path_expands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = expand_paths(TrainConfig(out=Path("~/x"), data_dir=Path("~"), resume=None))
    assert (config.out, config.data_dir, config.resume) == (Path("/home/me/x"), Path("/home/me"), None)
    assert expand_paths(EvaluateConfig(checkpoint=Path("~/a.pt"))).checkpoint == Path("/home/me/a.pt")
    with pytest.raises(UserError, match="no home folder is known for ~nosuchuser"):
        expand_paths(TrainConfig(out=Path("~nosuchuser/x")))
