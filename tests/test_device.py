"""How many cores a process may use, and which device it takes."""

import os

import pytest
import torch

from apart_fast.device import one_thread, pick_device, processes_here, usable_cores
from apart_fast.errors import UserError


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)


@pytest.fixture
def groups(tmp_path, eight_cores):
    """What writes a system's files of control groups."""

    def write(lines, **files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))
        for name, text in files.items():
            file = tmp_path / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return tmp_path

    return write


def test_those_that_it_may_run_on(monkeypatch, tmp_path, eight_cores):
    assert usable_cores(tmp_path) == 8  # not os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert usable_cores(tmp_path) == 1


@pytest.mark.parametrize("value, cores", [("3", 3), ("64", 8), ("0", 1), ("", 8), ("many", 8)])
def test_no_more_than_numba_may(monkeypatch, tmp_path, eight_cores, value, cores):
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    "limit, cores",
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("damaged", 8), ("1 0", 8)],
)
def test_quota_of_version_2(groups, limit, cores):
    assert usable_cores(groups(["0::/job"], **{"job/cpu.max": limit})) == cores


def test_the_tightest_quota_above_counts(groups):
    files = {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "400000 100000"}
    assert usable_cores(groups(["0::/a/b/c"], **files)) == 1


def test_a_container_sees_its_own_group_at_the_top(groups):
    assert usable_cores(groups(["0::/docker/not-mounted"], **{"cpu.max": "300000 100000"})) == 3


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("quota, cores", [("-1", 8), ("250000", 3)])
def test_quota_of_version_1(groups, folder, quota, cores):
    files = {f"{folder}/job/cpu.cfs_quota_us": quota, f"{folder}/job/cpu.cfs_period_us": "100000"}
    assert usable_cores(groups(["7:memory:/job", "4:cpu,cpuacct:/job", "0::/"], **files)) == cores


def test_there_is_one_cpu():
    with pytest.raises(UserError, match="--device cpu:7: torch has one CPU"):
        pick_device("cpu:7")
    assert pick_device("cpu:0") == pick_device("cpu") == torch.device("cpu")


def test_a_thread_knows_its_gpu_before_it_does_anything(monkeypatch):
    """Else it begins with the first one, and opens a context there."""
    told = []
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    with one_thread("x", torch.device("cuda:3")) as thread:
        assert thread.submit(lambda: list(told)).result() == [torch.device("cuda:3")]
    with one_thread("x", torch.device("cpu")) as thread:
        assert thread.submit(lambda: len(told)).result() == 1


@pytest.mark.parametrize(("said", "count"), [(None, 1), ("", 1), ("8", 8), ("0", 1), ("x", 1)])
def test_processes_on_this_host(said, count, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if said is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", said)
    assert processes_here() == count
