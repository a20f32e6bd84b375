"""What work runs on: which device, how many CPU cores, and how host memory is kept."""

import ctypes
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from apart_fast.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def pick_device(name: str | None) -> torch.device:
    """The named device, or a GPU if there is one, or the CPU; a GPU is made the current one.

    Raises:
        UserError: no such device, or no GPU.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: give cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs; give --device cpu, or none")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported: give cpu or cuda")
    if device.type == "cpu" and device.index:
        raise UserError(f"--device {name}: torch has one CPU, whatever its number of cores; give --device cpu")
    if device.type == "cpu":
        device = torch.device("cpu")  # torch takes cpu:0 for another device
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # torch does not take one without an index as the current one
        torch.cuda.set_device(device)  # streams, graphs and events belong to it
    return device


def processes_here() -> int:
    """How many processes torchrun has started on this host; 1 where it has not."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(count), 1) if count.isdecimal() else 1


def one_thread(name: str, device: torch.device) -> ThreadPoolExecutor:
    """A thread that does its jobs in order. What it waits for lies on `device`: a thread that is not told begins with
    the first GPU, and would open a context there that takes half a GB."""

    def begin() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)

    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin)


def usable_cores(root: Path = Path("/")) -> int:
    """How many CPU cores this process may keep busy, at least 1: those that it may run on (taskset, cpusets, Slurm), at
    most the CPU quota of its control groups (docker --cpus), rounded up, and NUMBA_NUM_THREADS.

    Args:
        root: folder of `proc` and `sys`.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    threads = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    limits = [cores, *map(math.ceil, _cpu_quotas(root)), *([int(threads)] if threads.isdecimal() else [])]
    return max(min(limits), 1)


def _cpu_quotas(root: Path) -> list[float]:
    """Cores that the control groups around this process leave it (versions 1 and 2); none where there is no limit."""
    quotas = []
    mounted = root / "sys/fs/cgroup"
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        return []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / controllers
        if controllers and not top.exists():
            top = mounted / "cpu"
        inner = top / path.strip("/")
        # in a container the path may be the host's: what is mounted is the container's own group
        above = [inner, *(folder for folder in inner.parents if folder.is_relative_to(top))]
        quotas += [quota for folder in above if (quota := _cpu_quota(folder)) is not None]
    return quotas


def _cpu_quota(group: Path) -> float | None:
    """Cores of one control group; None without a limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return None


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks instead of giving their pages back to the system after each use.

    The process stays as large as it ever was. Returns whether it could be done (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def available_bytes() -> float:
    """Host memory that can still be had, as far as the system tells."""
    available = float("inf")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        # of a container: its limit, less what it cannot give up
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        available = min(available, limit - used + int(files["inactive_file"]))
    except (OSError, ValueError, KeyError):  # another system; no limit
        pass
    return available
