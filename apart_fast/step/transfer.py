"""Buffers for rows of omega on their way between the host and the device, and when each may be used."""

import numpy as np
import torch
from torch import Tensor


def as_bytes(tensor: Tensor) -> np.ndarray:
    """View [rows, bytes of a row] of a contiguous tensor on the CPU."""
    return tensor.flatten(1).view(torch.uint8).numpy()


class HostTransfer:
    """The device is the host: a copy is over when the call returns.

    Attributes:
        inbox, outbox: uint8 [rows, bytes of a row] on the host.
    """

    def __init__(self, store: Tensor):
        self._in, self._out = torch.empty_like(store), torch.empty_like(store)
        self.inbox, self.outbox = as_bytes(self._in), as_bytes(self._out)

    def capturing(self) -> bool:
        """Main thread: whether the step is being captured."""
        return False

    def wait_sent(self) -> None:
        """Worker, before it fills the inbox: wait until what was in it has left."""

    def send(self, n: int) -> None:
        """Worker, after it filled n rows of the inbox."""

    def take(self, store: Tensor) -> None:
        """Main thread, after `send`: what was sent -> store."""
        store.copy_(self._in[: len(store)])

    def give(self, store: Tensor) -> None:
        """Main thread, when the worker has emptied the outbox: store -> outbox."""
        self._out[: len(store)].copy_(store)

    def wait_arrived(self) -> None:
        """Worker, before it reads the outbox."""


class CudaTransfer:
    """Pinned boxes on the host, a buffer for each on the device, and a stream each way beside that of the steps: on one
    stream the rows of the next step would wait for those of the last.

    home -> inbox -> (up) -> _in -> (steps' stream) -> store -> _out -> (down) -> outbox -> home.
    """

    def __init__(self, store: Tensor):
        self._in, self._out = torch.empty_like(store), torch.empty_like(store)
        self._pinned = [torch.empty(store.shape, dtype=store.dtype, pin_memory=True) for _ in range(2)]
        self.inbox, self.outbox = (as_bytes(box) for box in self._pinned)
        self._device = store.device
        self._up, self._down = (torch.cuda.Stream(store.device) for _ in range(2))
        for buffer, stream in ((self._in, self._up), (self._out, self._down)):
            buffer.record_stream(stream)  # freed memory is given out again when copies have ended there
        # blocking: a waiting worker leaves its core to others
        self._sent, self._taken, self._given, self._arrived = (torch.cuda.Event(blocking=True) for _ in range(4))
        self._taken.record(self._step_stream())  # `_in` may lie where a kernel that still runs has its data

    def _step_stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def wait_sent(self) -> None:
        self._sent.synchronize()

    def send(self, n: int) -> None:
        with torch.cuda.stream(self._up):
            self._up.wait_event(self._taken)
            _copy(self._in[:n], self._pinned[0][:n])
            self._sent.record(self._up)

    def take(self, store: Tensor) -> None:
        self._step_stream().wait_event(self._sent)
        _copy(store, self._in[: len(store)])
        self._taken.record(self._step_stream())

    def give(self, store: Tensor) -> None:
        n = len(store)
        _copy(self._out[:n], store)  # free: the worker has seen the copy before this one arrive
        self._given.record(self._step_stream())
        with torch.cuda.stream(self._down):
            self._down.wait_event(self._given)
            _copy(self._pinned[1][:n], self._out[:n])
            self._arrived.record(self._down)

    def wait_arrived(self) -> None:
        self._arrived.synchronize()


Transfer = HostTransfer | CudaTransfer
TRANSFERS: dict[str, type[HostTransfer] | type[CudaTransfer]] = {"cpu": HostTransfer, "cuda": CudaTransfer}


def make_transfer(store: Tensor) -> Transfer:
    """Buffers for as many rows as `store` [rows, ...] has, between the host and the store's device."""
    return TRANSFERS[store.device.type](store)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)
