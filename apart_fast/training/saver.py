"""Checkpoints are written by a thread beside the steps, from a copy in host memory."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch

from apart_fast.device import one_thread
from apart_fast.runs import checkpoint
from apart_fast.training.snapshot import HostCopy

Write = Callable[[Path, dict], None]


class Saver:
    """Writes files one after the other, in the order of the calls, each whole or not at all.

    Of each kind of file at most one is on its way. In host memory lie a copy of the last state of each kind (see
    `HostCopy`); where there is no room for that, the caller waits until the file is written.

    Args:
        device: where the states lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._writer = one_thread("checkpoint", device)
        self._copies: dict[str, HostCopy] = {}
        self._pending: dict[str, Future] = {}
        self._held: dict[str, float] = {}
        self._worked: dict[str, float] = {}

    def save(self, kind: str, path: Path, collect: Callable[[], dict], write: Write | None = None) -> None:
        """Have the state that `collect` gives now written to `path`.

        Args:
            kind: files of one kind hold the same tensors.
            write: what writes it; None: `checkpoint.save`.

        Raises:
            UserError: no space left or no right to write, found now or by an earlier write.
        """
        began = time.perf_counter()
        if kind in self._pending:
            self._wait_for(kind)  # its copy is written from
        for other in [name for name, write in self._pending.items() if write.done()]:
            self._wait_for(other)
        copy, state = self._copies.setdefault(kind, HostCopy()), collect()
        copied = copy.take(state)
        if copied is None:
            self.wait()
            (write or checkpoint.save)(path, state)
            self._worked[kind] = 0.0
        else:
            self._pending[kind] = self._writer.submit(self._write, kind, path, copied, copy, write)
        self._held[kind] = time.perf_counter() - began

    def _write(self, kind: str, path: Path, state: dict, copy: HostCopy, write: Write | None) -> None:
        began = time.thread_time()
        copy.wait_arrived()
        (write or checkpoint.save)(path, state)
        self._worked[kind] = time.thread_time() - began

    def busy(self, kind: str) -> bool:
        """Whether a file of this kind is still on its way."""
        return kind in self._pending and not self._pending[kind].done()

    def cost(self, kind: str) -> float:
        """Seconds that the last file of this kind took from the training: those in which `save` held it up, and those
        that the thread kept a core busy, which on a CPU the steps would have had. 0 before the first."""
        return self._held.get(kind, 0.0) + self._worked.get(kind, 0.0)

    def wait(self) -> None:
        """Until nothing is on its way.

        Raises:
            UserError: see `save`.
        """
        for kind in list(self._pending):
            self._wait_for(kind)

    def close(self) -> None:
        """Wait, without complaint, and end the thread."""
        self._writer.shutdown()
        self._pending.clear()
        self._copies.clear()

    def _wait_for(self, kind: str) -> None:
        self._pending.pop(kind).result()
