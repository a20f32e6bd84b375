"""The parts of FFCV in use, with its traps closed; importing this module imports ffcv (see ffcv.py).

Written against ffcv 1.0.2, whose behaviour the comments describe.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import Value
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
from ffcv.fields import IntField, NDArrayField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.ndarray import NDArrayDecoder
from ffcv.loader import Loader, OrderOption, epoch_iterator
from ffcv.memory_allocator import MemoryAllocator
from ffcv.pipeline.compiler import Compiler
from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter
from tqdm import tqdm

from apart_fast.loaders.datasets.splits import Split

_POLL = 1.0  # seconds between looks at whether the reader's thread is still alive


def _set_numba_threads(cls: type[Compiler], n: int) -> None:
    most = vars(numba.config)["NUMBA_NUM_THREADS"]  # numba refuses more, and `taskset -c 0` leaves 1
    cls.num_threads = min(n, most)
    numba.set_num_threads(cls.num_threads)


# FFCV would set torch's threads as well, and again from its own thread at every epoch
Compiler.set_num_threads = classmethod(_set_numba_threads)
# with CUDA it records events on the training stream from its thread, which breaks CUDA graph capture; nothing here
# is decoded to the device, and batches are copied before the next is asked for
epoch_iterator.IS_CUDA = False


# ---------------------------------------------------------------------------------------------------------------------
# writing


class _Samples:
    """What the writer indexes: (image, label, index)."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.images.numpy(), split.labels.numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.integer, int]:
        return self.images[i], self.labels[i], i


class _Chunks:
    """Stands for the writer's queue of work, and moves the progress bar."""

    def __init__(self, chunks: Iterable[Sequence], bar: tqdm) -> None:
        self.chunks, self.bar, self.handed_out = iter(chunks), bar, 0

    def get(self) -> Sequence | None:
        self.bar.update(self.handed_out)
        chunk = next(self.chunks, None)
        self.handed_out = len(chunk) if chunk else 0
        return chunk


class _Writer(DatasetWriter):
    """Writes in this process: FFCV forks workers, and waits forever when one of them fails (a full disk)."""

    progress = True
    metadata_sm: Any

    def _write_common(
        self,
        num_samples: int,
        queue_content: Iterable[Sequence],
        work_fn: Callable[..., None],
        extra_worker_args: tuple,
    ) -> None:
        self.num_samples = num_samples
        self.prepare()
        self.metadata_sm.close()
        self.metadata_sm.unlink()
        self.metadata_sm = SimpleNamespace(buf=bytearray(num_samples * self.metadata_type.itemsize))
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        allocations: SimpleQueue[Any] = SimpleQueue()
        done = Value(ctypes.c_uint64, 0)
        with tqdm(
            total=num_samples,
            desc="converting for FFCV",
            unit="img",
            mininterval=0.5,
            disable=None if self.progress else True,
        ) as bar:
            work = _Chunks(queue_content, bar)
            worker_args = (self.metadata_sm, self.metadata_type, self.fields, allocator, done, allocations)
            work_fn(work, *worker_args, *extra_worker_args)
        self.finalize(allocations.get())
        # its unbuffered writes may be cut short by a full disk without an error
        pages, rest = divmod(int(self.header["alloc_table_ptr"]) - allocator.offset, self.page_size)
        if rest or pages != allocator.next_page_written.value:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.fname)


def write(path: Path, split: Split, progress: bool) -> None:
    """Write fields image (uint8 [H, W, C]), label and index (position in the split) to `path`, in place.

    Raises:
        OSError: among others when no space is left.
    """
    shape = tuple(split.images.shape[1:])
    page = max(MIN_PAGE_SIZE, 1 << (int(np.prod(shape)) - 1).bit_length())  # a page holds at least one image
    fields = {"image": NDArrayField(np.dtype(np.uint8), shape), "label": IntField(), "index": IntField()}
    writer = _Writer(str(path), fields, page_size=page, num_workers=1)
    writer.progress = progress
    writer.from_indexed_dataset(_Samples(split))


# ---------------------------------------------------------------------------------------------------------------------
# reading


class Source:
    """Reads examples of a .beton file in any order, one reader at a time."""

    def __init__(self, path: Path, batch_size: int, workers: int) -> None:
        self._loader = Loader(
            str(path),
            batch_size,
            num_workers=workers,
            os_cache=True,
            order=OrderOption.SEQUENTIAL,  # unused: readers bring their own order
            seed=0,  # otherwise one is drawn from numpy's global generator
            drop_last=False,
            pipelines={"image": [NDArrayDecoder()], "label": [IntDecoder()], "index": [IntDecoder()]},
        )
        self._reader: _Reader | None = None

    def read(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (uint8 images [B, H, W, C], int64 labels [B], int64 positions [B]) of the examples at `positions`.

        The arrays are overwritten after later batches: copy them. Ends a reader that was left unfinished.

        Raises:
            RuntimeError: reading failed (FFCV alone would wait forever).
        """
        self.close()
        Compiler.set_num_threads(self._loader.num_workers)
        reader = self._reader = _Reader(self._loader, positions)
        try:
            for images, labels, indices in reader:
                yield images, labels[:, 0], indices[:, 0]
        finally:
            reader.stop()

    def close(self) -> None:
        """End the reader's thread."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None


class _Reader(epoch_iterator.EpochIterator):
    """FFCV's thread that fills a queue of batches, made to report failure and to end when asked."""

    failure: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.failure = error

    def __next__(self) -> tuple[np.ndarray, ...]:
        while True:
            try:
                result = self.output_queue.get(timeout=_POLL)
            except Empty:
                # looked at in this order: a thread that ended may have left batches
                if not self.is_alive() and self.output_queue.empty():
                    raise RuntimeError(f"the thread that reads the FFCV file ended: {self.failure!r}") from self.failure
                continue
            if result is None:
                self.output_queue.put(None)  # so that asking again ends again
                raise StopIteration
            return result[1]

    def stop(self) -> None:
        """End and join the thread."""
        self.close()
        self.iter_ixes = iter(())  # without work it comes to its end, which it announces in a queue that must have room
        while self.is_alive():
            with suppress(Empty):
                self.output_queue.get_nowait()
            self.join(0.01)
