"""The processes of one training, as torchrun starts them: who they are, and what they say to each other.

What is said here goes over the host (gloo, and the store that torchrun keeps); gradients have `Exchange`.
"""

import gc
import os
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from apart_fast.errors import Interrupted, RankLost, SaidElsewhere, Stopped, UserError
from apart_fast.parallel.exchange import Exchange

TIMEOUT = timedelta(minutes=5)  # after which a rank that others wait for in a step is given up
PATIENCE = timedelta(hours=12)  # with a rank that downloads, converts or judges alone
NOTICE = 5.0  # seconds in which a rank that fails has said so

T = TypeVar("T")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class World:
    """This process among those that train one network; alone by default.

    Attributes:
        rank: its number, from 0; size: how many there are.
        local_rank: its number on this host: that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    _host: dist.ProcessGroup | None = None
    _store: dist.Store | None = None
    _used: Counter[str] = field(default_factory=Counter)

    @property
    def first(self) -> bool:
        """Whether it is this process that prints, writes and converts."""
        return self.rank == 0

    def of_first(self, find: Callable[[], T]) -> T:
        """What `find` gives on rank 0, where alone it is called.

        Raises:
            SaidElsewhere: it has failed there.
        """
        box: list[Any] = [None, False]
        try:
            if self.first:
                box = [find(), True]
        finally:
            if self.size > 1:
                dist.broadcast_object_list(box, src=0, group=self._host)
        if not box[1]:
            raise SaidElsewhere(2)
        return box[0]

    def sum(self, numbers: Sequence[N]) -> list[N]:
        """Of each over all ranks, integers below 2**53 exactly; every rank must call."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self._host)
        return [type(n)(s) for n, s in zip(numbers, total.tolist(), strict=True)]

    def part(self, n: int) -> slice:
        """This rank's of n things in a row."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def most(self, number: int) -> int:
        """The largest that a rank has; every rank must call."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._host)
        return int(largest)

    def meet(self) -> None:
        """No rank goes on before all are here."""
        self.most(0)

    def means(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each tensor's mean over the ranks, of its type and where it lies; every rank must call."""
        if self.size == 1 or not tensors:
            return tensors
        flat = torch.cat([t.detach().to("cpu", torch.float64).reshape(-1) for t in tensors.values()])
        dist.all_reduce(flat, group=self._host)
        parts = (flat / self.size).split([t.numel() for t in tensors.values()])
        return {name: part.view(t.shape).to(t) for (name, t), part in zip(tensors.items(), parts, strict=True)}

    @contextmanager
    def first_alone(self, what: str) -> Iterator[None]:
        """The body runs on rank 0, and when it has ended there on the others, which until then hold no core.

        Args:
            what: a name for it; all ranks have the same bodies in the same order.

        Raises:
            SaidElsewhere: it has failed on rank 0.
        """
        if self._store is None:
            yield
            return
        self._used[what] += 1
        key = f"apart_fast/{what}/{self._used[what]}"
        if not self.first:
            self._wait(key)
            if self._store.get(key) != b"done":
                raise SaidElsewhere(2)
        try:
            yield
        except BaseException:
            if self.first:
                self._store.set(key, "failed")
            raise
        if self.first:
            self._store.set(key, "done")

    def _wait(self, key: str) -> None:
        assert self._store is not None
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while time.monotonic() < deadline:  # not the store's own wait: no signal would end it
            if self._store.check([key]):
                return
            if gone := self._gone():
                raise RankLost(f"{gone} has ended: go on with --resume auto")
            time.sleep(0.1)
        raise RankLost(f"rank 0 has not come to {key} in {PATIENCE}: start the training again")

    def exchange(self, flags: int) -> Exchange | None:
        """For the gradients; None where there is no other rank."""
        return Exchange(flags=flags) if self.size > 1 else None

    def device(self, name: str | None) -> str | None:
        """What `--device` says, for this rank: each has a GPU of its own, whatever number a run had that was alone.

        Raises:
            UserError: the processes talk as others do, on CPUs or on GPUs.
        """
        on_gpus = torch.cuda.is_available() if name is None else name.startswith("cuda")
        if self.size == 1:
            return name
        if on_gpus != (dist.get_backend() == "nccl"):  # a run that goes on where it did not begin
            raise UserError(
                f"the run computes on {'GPUs' if on_gpus else 'the CPU'}: give --device cuda, or --device cpu"
            )
        return f"cuda:{self.local_rank}" if on_gpus else name

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Within: of a line with which several ranks end, one is printed.

        Raises:
            SaidElsewhere: another one says it.
        """
        try:
            yield
        except (UserError, Stopped, Interrupted, RankLost) as error:
            if not self.says(str(error)):
                raise SaidElsewhere(getattr(error, "code", 2)) from error
            raise

    def says(self, line: str) -> bool:
        """Whether this rank is to print a line with which it ends: the first that has this one does."""
        if self._store is None:
            return True
        try:
            self._store.set("apart_fast/ended", line)
            return self._store.add(f"apart_fast/line/{line}", 1) == 1
        except Exception:  # the store has ended with another rank
            return self.first

    def lost(self, error: BaseException) -> Exception:
        """What to say where talking to the other ranks has failed."""
        if self._store is None:
            return UserError(str(error).splitlines()[0])
        deadline = time.monotonic() + NOTICE
        while time.monotonic() < deadline:
            with suppress(Exception):
                if self._store.check(["apart_fast/ended"]):
                    return SaidElsewhere(2)
            gone = self._gone()
            if gone:
                return RankLost(f"{gone} has ended: the last checkpoint stays, go on with --resume auto")
            time.sleep(0.1)
        return RankLost(f"another rank cannot be reached ({str(error).splitlines()[0]}): go on with --resume auto")

    def others_end(self) -> bool:
        """Whether another rank has said with which line it ends, or is no more (on this host)."""
        if self._store is None:
            return False
        try:
            return self._store.check(["apart_fast/ended"]) or self._gone() is not None
        except Exception:  # the store has ended with another rank
            return True

    def _gone(self) -> str | None:
        """A rank of this host whose process is no more."""
        assert self._store is not None
        for rank in range(self.size):
            key = f"apart_fast/process/{rank}"
            with suppress(Exception):
                if not self._store.check([key]):  # to ask for what is not there is to wait for it
                    continue
                host, pid = self._store.get(key).decode().rsplit(":", 1)
                if rank != self.rank and host == socket.gethostname() and not _runs(int(pid)):
                    return f"rank {rank} (process {pid} on {host})"
        return None


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def started_by_torchrun() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1) > 1


def store_of_this_attempt() -> dist.Store:
    """torchrun keeps one store over all restarts, with what was said before them: ranks would take it for news.

    Raises:
        UserError: on several hosts, which do not count the same restarts.
    """
    several = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]) != os.environ["WORLD_SIZE"]
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if several and kept and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise UserError(
            "on several hosts a restart would find what was said before it: start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or without --max-restarts"
        )
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    store.set_timeout(TIMEOUT)
    attempt = "0" if several else os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"apart_fast/attempt {attempt}", store)


@contextmanager
def world(device: str | None) -> Iterator[World]:
    """Within: this process is one of those that torchrun has started, or alone.

    Ranks other than 0 print nothing but the line with which they end.

    Args:
        device: of the training, as `--device` names it: NCCL talks between GPUs, gloo between CPUs.

    Raises:
        UserError: the others cannot be reached.
        SaidElsewhere, RankLost: see there.
    """
    if not started_by_torchrun():
        yield World()
        return
    if ":" in (device or ""):
        raise UserError(f"--device {device} with several processes would be the device of all: give --device cuda")
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    on_gpu = (device or "cuda").startswith("cuda") and torch.cuda.is_available()
    if on_gpu and local >= torch.cuda.device_count():
        raise UserError(
            f"{local + 1} processes on this host, and {torch.cuda.device_count()} GPUs: give torchrun "
            f"--nproc-per-node {torch.cuda.device_count()}, or --device cpu"
        )
    try:
        if on_gpu:
            torch.cuda.set_device(local)
        store = store_of_this_attempt()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, world_size=size, rank=rank, store=store)
        host = dist.new_group(backend="gloo", timeout=PATIENCE) if on_gpu else dist.group.WORLD
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this training cannot reach each other ({str(error).splitlines()[0]}): start them with "
            "torchrun, and see MASTER_ADDR and MASTER_PORT"
        ) from error
    assert isinstance(host, dist.ProcessGroup)
    made = World(dist.get_rank(), dist.get_world_size(), local, host, store)
    store.set(f"apart_fast/process/{made.rank}", f"{socket.gethostname()}:{os.getpid()}")
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        before = sys.stdout
        if not made.first:
            sys.stdout = nowhere
            warnings.simplefilter("ignore")
        try:
            yield made
        except RuntimeError as error:
            if "gloo" in str(error).lower() or "nccl" in str(error).lower() or isinstance(error, dist.DistError):
                with made.one_line():
                    raise made.lost(error) from error
            raise
        finally:
            sys.stdout = before
    gc.collect()  # NCCL waits until no captured step holds a collective
    dist.destroy_process_group()
