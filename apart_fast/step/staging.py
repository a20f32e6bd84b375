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

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.files import NO_ROOM
from apart_fast.step.omega import Memory


class StagedMemory(Memory):
    """A memory whose rows lie in `home` on the host; `store` holds those of one batch, in the batch's order.

    Args:
        home: [number of examples, H + 2p, W + 2p, C] on the CPU.
        device: where the steps run.
        announce: called with the numbers of rows (int64 [B]) that will be read next.
    """

    def __init__(self, home: Tensor, device: torch.device, announce: Callable[[np.ndarray], None] = lambda rows: None):
        super().__init__(home.new_empty(0, *home.shape[1:], device=device))
        self.nbytes = home.nbytes
        self._home, self._bytes, self._announce = home, _as_bytes(home), announce
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="omega")
        self._lane = None  # buffers for as many rows as `store` has
        self._numbered: Tensor | None = None  # 0, 1, ... on the device, for each of these rows
        self._ahead: tuple[np.ndarray, Future] | None = None  # gathered, or being gathered, for the next step
        self._scattered: Future | None = None
        self._here: int | None = None  # number of rows at hand
        self._captured = False

    @contextmanager
    def at_hand(self, indices: Tensor, upcoming: Tensor | None = None) -> Iterator[None]:
        """Within: the rows of the examples `indices` are in the store; afterwards they go home.

        Inside another one it does nothing. After an exception the home keeps the rows it had before.

        Args:
            indices: int64 [B], each at most once; on the CPU: on a GPU, reading them waits for the device.
            upcoming: int64 on the CPU, `indices` of the next step, whose rows are brought meanwhile. If the next step
                turns out to be another one, its own rows are brought then.

        Raises:
            IndexError: no such example.
            ValueError: more or fewer indices than at hand; a larger batch after a smaller one was captured.
        """
        if self._here is not None:
            if len(indices) != self._here:
                raise ValueError(f"the rows of {self._here} examples are at hand, and the step has {len(indices)}")
            yield
            return
        rows = self._numbers(indices)
        upcoming = self._numbers(upcoming) if upcoming is not None and len(upcoming) else None
        self._bring(rows)
        early = upcoming is not None and not np.intersect1d(rows, upcoming, assume_unique=True).size
        if early:
            self._gather_ahead(upcoming)
        self._here = len(rows)
        try:
            yield
        finally:
            self._here = None
        self._put_back(rows)
        if upcoming is not None and not early:
            self._gather_ahead(upcoming)

    def rows(self, indices: Tensor) -> Tensor:
        self._captured |= self._lane.capturing()
        return self._numbered[: len(indices)]

    def contents(self) -> Tensor:
        if self._here is not None:
            raise RuntimeError("omega can be read and changed between steps, not within one")
        self._settle()
        return self._home

    def _numbers(self, indices: Tensor) -> np.ndarray:
        rows = indices.cpu().numpy().copy()  # the worker reads them later, when the caller may have changed them
        if rows.min() < 0 or rows.max() >= len(self._home):
            raise IndexError(f"example {rows.min()} or {rows.max()} is outside of 0..{len(self._home) - 1}")
        return rows

    # ---- main thread

    def _bring(self, rows: np.ndarray) -> None:
        if len(rows) > len(self.store):
            self._enlarge(len(rows))
        if self._ahead is None or not np.array_equal(self._ahead[0], rows):
            self._gather_ahead(rows)
        (_, gathered), self._ahead = self._ahead, None
        gathered.result()
        self._lane.take(self.store[: len(rows)])

    def _gather_ahead(self, rows: np.ndarray) -> None:
        if len(rows) <= len(self.store):  # otherwise `_bring` makes room first
            self._ahead = rows, self._worker.submit(self._gather, rows)

    def _put_back(self, rows: np.ndarray) -> None:
        if self._scattered is not None:
            self._scattered.result()  # the outbox is free; and so the host is never further ahead than one step
        self._lane.give(self.store[: len(rows)])
        self._scattered = self._worker.submit(self._scatter, rows)

    def _settle(self) -> None:
        """Let the worker end, and forget what it brought: the home may be changed."""
        jobs = [self._ahead and self._ahead[1], self._scattered]
        self._ahead = self._scattered = None
        for job in jobs:
            if job is not None:
                job.result()

    def _enlarge(self, n: int) -> None:
        if self._captured:
            raise ValueError(
                f"a batch of {n} after a CUDA graph was captured with room for {len(self.store)}: "
                "begin with the largest batch"
            )
        self._settle()
        self.store = self.store.new_empty(n, *self.store.shape[1:])
        self._numbered = torch.arange(n, device=self.device)
        self._lane = _LANES[self.device.type](self.store)

    # ---- worker

    def _gather(self, rows: np.ndarray) -> None:
        self._announce(rows)
        self._lane.wait_sent()
        # numpy: one thread, which is enough for copies, beside torch's own. "clip": the numbers were checked
        np.take(self._bytes, rows, axis=0, out=self._lane.inbox[: len(rows)], mode="clip")
        self._lane.send(len(rows))

    def _scatter(self, rows: np.ndarray) -> None:
        self._lane.wait_arrived()
        self._bytes[rows] = self._lane.outbox[: len(rows)]


def _as_bytes(tensor: Tensor) -> np.ndarray:
    """View [rows, bytes of a row] of a contiguous tensor on the CPU."""
    return tensor.flatten(1).view(torch.uint8).numpy()


# ---- lanes: buffers on the way, and when each may be used


class _HostLane:
    """The device is the host: a copy is over when the call returns.

    Attributes:
        inbox, outbox: uint8 [rows, bytes of a row] on the host.
    """

    def __init__(self, store: Tensor):
        self._in, self._out = torch.empty_like(store), torch.empty_like(store)
        self.inbox, self.outbox = _as_bytes(self._in), _as_bytes(self._out)

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


class _CudaLane:
    """Pinned boxes on the host, a buffer for each on the device, and a stream each way beside that of the steps: on one
    stream the rows of the next step would wait for those of the last.

    home -> inbox -> (up) -> _in -> (steps' stream) -> store -> _out -> (down) -> outbox -> home.
    """

    def __init__(self, store: Tensor):
        self._in, self._out = torch.empty_like(store), torch.empty_like(store)
        self._pinned = [torch.empty(store.shape, dtype=store.dtype, pin_memory=True) for _ in range(2)]
        self.inbox, self.outbox = (_as_bytes(box) for box in self._pinned)
        self._device = store.device
        self._up, self._down = (torch.cuda.Stream(store.device) for _ in range(2))
        for buffer, stream in ((self._in, self._up), (self._out, self._down)):
            buffer.record_stream(stream)  # freed memory is given out again when copies have ended there
        # blocking: a waiting worker leaves its core to others
        self._sent, self._taken, self._given, self._arrived = (torch.cuda.Event(blocking=True) for _ in range(4))
        self._taken.record(self._steps())  # `_in` may lie where a kernel that still runs has its data

    def _steps(self) -> torch.cuda.Stream:
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
        self._steps().wait_event(self._sent)
        _copy(store, self._in[: len(store)])
        self._taken.record(self._steps())

    def give(self, store: Tensor) -> None:
        n = len(store)
        _copy(self._out[:n], store)  # free: the worker has seen the copy before this one arrive
        self._given.record(self._steps())
        with torch.cuda.stream(self._down):
            self._down.wait_event(self._given)
            _copy(self._pinned[1][:n], self._out[:n])
            self._arrived.record(self._down)

    def wait_arrived(self) -> None:
        self._arrived.synchronize()


_LANES = {"cpu": _HostLane, "cuda": _CudaLane}


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)


# ---- where the rows lie


def make_memory(
    kind: str,
    num_examples: int,
    image_shape: Sequence[int],
    padding: int,
    dtype: torch.dtype,
    device: torch.device,
    folder: str | os.PathLike | None = None,
) -> Memory:
    """A memory of zeros for images [H, W, C] whose rows lie where `kind` (a key of `MEMORIES`) says.

    Args:
        folder: for "disk": where its file lies, made if need be. The file has no name and is gone with the process,
            however that ends: checkpoints hold what is needed.

    Raises:
        UserError: unknown kind, no folder for "disk", not enough host memory, or a folder that is full or cannot be
            written.
    """
    if kind not in MEMORIES:
        raise UserError(f"unknown omega_device {kind!r}: choose one of {', '.join(MEMORIES)}")
    h, w, c = image_shape
    shape = (num_examples, h + 2 * padding, w + 2 * padding, c)
    return MEMORIES[kind](shape, dtype, device, folder)


def _on_device(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, _folder) -> Memory:
    return Memory(torch.zeros(shape, dtype=dtype, device=device))


def _in_host_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, _folder) -> Memory:
    needed, available = _nbytes(shape, dtype), _available_bytes()
    if needed > available:  # the system would promise it, and end the process when it is used
        raise UserError(
            f"omega needs {needed / 1e9:.1f} GB of host memory, and {available / 1e9:.1f} GB are free: "
            "store it as int8, or on disk"
        )
    home = torch.zeros(shape, dtype=dtype)  # only the boxes are pinned: torch pins in powers of two
    return Memory(home) if device.type == "cpu" else StagedMemory(home, device)


def _on_disk(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, folder) -> Memory:
    if folder is None:
        raise UserError("omega_device disk needs a folder for the file: give omega_folder")
    if not hasattr(os, "posix_fallocate"):
        raise UserError("omega_device disk needs Linux: choose host")
    mapped = _map_file(Path(folder), _nbytes(shape, dtype))
    home = torch.frombuffer(mapped, dtype=dtype).view(shape)
    size = home[0].nbytes

    def announce(rows: np.ndarray) -> None:
        # all rows are read from the disk at once, and no more than they
        for row in rows.tolist():
            begin = row * size // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, begin, (row + 1) * size - begin)

    return StagedMemory(home, device, announce)


MEMORIES: dict[str, Callable[..., Memory]] = {"device": _on_device, "host": _in_host_memory, "disk": _on_disk}


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _map_file(folder: Path, size: int) -> mmap.mmap:
    """A new file without a name, mapped; all its blocks are there, so that the disk cannot become full later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".omega-", dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        where = f"omega ({size / 1e9:.1f} GB) in {folder}"
        if error.errno in NO_ROOM:
            raise UserError(f"no space left for {where}: free some space or choose another folder") from error
        raise UserError(f"cannot write {where} ({error.strerror}): choose a folder that can be written") from error


def _available_bytes() -> float:
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
