"""omega outside the device, in host memory or on disk: the rows of a batch are on the device for their step only.

For each step k, with m the main thread and w a single worker thread that does its jobs in order:

    m   waits until w has gathered the rows of step k, and copies them into `store`
    w   gathers the rows of step k + 1 and sends them to the device
    m   runs (on a GPU: launches) step k
    m   copies `store` out, and has it sent to the host
    w   waits until it has arrived, and scatters it into the home

so that gathering, sending and scattering go on beside the steps, and the device waits for the host only when the host
needs longer for them than the device for a step. Rows that two steps in a row share (they are another order of the
same examples) are gathered after they were scattered: the worker gets that job last. `store` keeps its address, so
that a CUDA graph can hold the step; all copies are outside of the graph.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from apart_fast.device import one_thread
from apart_fast.step import spans
from apart_fast.step.omega import TWICE, Memory
from apart_fast.step.spans import span
from apart_fast.step.transfer import Transfer, as_bytes, make_transfer


class StagedMemory(Memory):
    """A memory whose rows lie in `home` on the host; `store` holds those of one batch, in the batch's order.

    Args:
        home: [number of examples, H + 2p, W + 2p, C] on the CPU.
        device: where the steps run.
        announce: called with the numbers of rows (int64 [B]) that will be read next.
    """

    host_indices = True

    def __init__(self, home: Tensor, device: torch.device, announce: Callable[[np.ndarray], None] = lambda rows: None):
        super().__init__(home.new_empty(0, *home.shape[1:], device=device))
        self.nbytes = home.nbytes
        self._home, self._bytes, self._announce = home, as_bytes(home), announce
        self._worker = one_thread("omega", device)
        self._buffers: Transfer | None = None  # for as many rows as `store` has
        self._positions = torch.arange(0, device=device)  # 0, 1, ..., for each of these rows
        self._prefetched: tuple[np.ndarray, Future] | None = None  # gathered, or being gathered, for the next step
        self._scattered: Future | None = None
        self._at_hand: int | None = None  # number of rows at hand
        self._captured = False

    @contextmanager
    def at_hand(self, indices: Tensor, upcoming: Tensor | None = None) -> Iterator[None]:
        """Within: the rows of the examples `indices` are in the store; afterwards they go home.

        Inside another one, or of no examples (a rank without images), it does nothing. After an exception the home
        keeps the rows it had before.

        Args:
            indices: int64 [B], each at most once; on the CPU: on a GPU, reading them waits for the device.
            upcoming: int64 on the CPU, `indices` of the next step, whose rows are brought meanwhile. If the next step
                turns out to be another one, its own rows are brought then.

        Raises:
            IndexError: no such example.
            ValueError: an example twice; more or fewer indices than at hand; a larger batch after a smaller one was
                captured.
        """
        if self._at_hand is not None and len(indices) != self._at_hand:
            raise ValueError(f"the rows of {self._at_hand} examples are at hand, and the step has {len(indices)}")
        if self._at_hand is not None or not len(indices):
            yield
            return
        rows = self._check_rows(indices)
        following = self._check_rows(upcoming) if upcoming is not None and len(upcoming) else None
        with span(spans.START):
            self._load(rows)
        shared = following is not None and np.intersect1d(rows, following, assume_unique=True).size > 0
        if following is not None and not shared:
            self._prefetch(following)
        self._at_hand = len(rows)
        try:
            yield
        finally:
            self._at_hand = None
        with span(spans.REMEMBER):
            self._store_back(rows)
        if following is not None and shared:  # after they were scattered
            self._prefetch(following)

    def rows(self, indices: Tensor) -> Tensor:
        self._captured |= self._transfer.capturing()
        return self._positions[: len(indices)]

    def contents(self) -> Tensor:
        if self._at_hand is not None:
            raise RuntimeError("omega can be read and changed between steps, not within one")
        self._drain()
        return self._home

    def _check_rows(self, indices: Tensor) -> np.ndarray:
        rows = indices.cpu().numpy().copy()  # the worker reads them later, when the caller may have changed them
        if rows.min() < 0 or rows.max() >= len(self._home):
            raise IndexError(f"example {rows.min()} or {rows.max()} is outside of 0..{len(self._home) - 1}")
        if len(np.unique(rows)) < len(rows):
            raise ValueError(TWICE)
        return rows

    # ---- main thread

    def _load(self, rows: np.ndarray) -> None:
        if len(rows) > len(self.store):
            self._enlarge(len(rows))
        if self._prefetched is None or not np.array_equal(self._prefetched[0], rows):
            self._prefetch(rows)
        assert self._prefetched is not None
        (_, gathered), self._prefetched = self._prefetched, None
        gathered.result()
        self._transfer.take(self.store[: len(rows)])

    def _prefetch(self, rows: np.ndarray) -> None:
        if len(rows) <= len(self.store):  # otherwise `_load` makes room first
            self._prefetched = rows, self._worker.submit(self._gather, rows)

    def _store_back(self, rows: np.ndarray) -> None:
        if self._scattered is not None:
            self._scattered.result()  # the outbox is free; and so the host is never further ahead than one step
        self._transfer.give(self.store[: len(rows)])
        self._scattered = self._worker.submit(self._scatter, rows)

    def _drain(self) -> None:
        """Let the worker end, and forget what it brought: the home may be changed."""
        jobs = [self._prefetched and self._prefetched[1], self._scattered]
        self._prefetched = self._scattered = None
        for job in jobs:
            if job is not None:
                job.result()

    def _enlarge(self, n: int) -> None:
        if self._captured:
            raise ValueError(
                f"a batch of {n} after a CUDA graph was captured with room for {len(self.store)}: "
                "begin with the largest batch"
            )
        self._drain()
        self.store = self.store.new_empty(n, *self.store.shape[1:])
        self._positions = torch.arange(n, device=self.device)
        self._buffers = make_transfer(self.store)

    @property
    def _transfer(self) -> Transfer:
        assert self._buffers is not None  # made with the first rows
        return self._buffers

    # ---- worker

    def _gather(self, rows: np.ndarray) -> None:
        self._announce(rows)
        self._transfer.wait_sent()
        # numpy: one thread, which is enough for copies, beside torch's own. "clip": the numbers were checked
        np.take(self._bytes, rows, axis=0, out=self._transfer.inbox[: len(rows)], mode="clip")
        self._transfer.send(len(rows))

    def _scatter(self, rows: np.ndarray) -> None:
        self._transfer.wait_arrived()
        self._bytes[rows] = self._transfer.outbox[: len(rows)]
