"""The parts of FFCV in use, with its traps closed; importing this module imports ffcv (see ffcv.py).

Written against ffcv 1.0.2, whose behaviour the comments describe.
"""

import ctypes
import errno
import os
from array import array
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
from ffcv.loader import loader as ffcv_loader
from ffcv.memory_allocator import MemoryAllocator
from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager
from ffcv.pipeline.compiler import Compiler
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE
from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter, worker_job_indexed_dataset
from tqdm import tqdm

from apart_fast.loaders.datasets.mapped import ReadAhead
from apart_fast.loaders.datasets.splits import Split

_CHUNK = 100  # samples between two looks at the progress bar
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
        self.store, self.labels = split.store.numpy(), split.labels.numpy()
        self.rows = None if split.rows is None else split.rows.numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.integer, int]:
        return self.store[i if self.rows is None else self.rows[i]], self.labels[i], i


class _Allocations:
    """FFCV's list of (sample, place, size), in 24 bytes each."""

    def __init__(self) -> None:
        self._flat = array("Q")

    def __len__(self) -> int:
        return len(self._flat) // 3

    def __getitem__(self, i: int) -> array:
        assert i == -1
        return self._flat[-3:]

    def append(self, item: tuple[int, int, int]) -> None:
        self._flat.extend(item)

    def pop(self) -> None:
        del self._flat[-3:]

    def table(self) -> np.ndarray:
        """As FFCV has it in its files."""
        return np.frombuffer(self._flat, ALLOC_TABLE_TYPE)


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

    def write_all(self, samples: _Samples) -> None:
        """All samples in order; `from_indexed_dataset` makes a list of Python objects of all of them first."""
        count = len(samples)
        firsts = range(0, count, _CHUNK)
        chunks = ([(i, i) for i in range(first, min(first + _CHUNK, count))] for first in firsts)
        self._write_common(count, chunks, worker_job_indexed_dataset, (samples,))

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
        allocator.allocations = _Allocations()
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
        self.finalize([allocations.get().table()])
        # its unbuffered writes may be cut short by a full disk without an error
        pages, rest = divmod(int(self.header["alloc_table_ptr"]) - allocator.offset, self.page_size)
        if rest or pages != allocator.next_page_written.value:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.fname)


def write(path: Path, split: Split, progress: bool) -> None:
    """Write fields image (uint8 [H, W, C]), label and index (position in the split) to `path`, in place.

    Raises:
        OSError: among others when no space is left.
    """
    shape = split.shape[1:]
    page = max(MIN_PAGE_SIZE, 1 << (int(np.prod(shape)) - 1).bit_length())  # a page holds at least one image
    fields = {"image": NDArrayField(np.dtype(np.uint8), shape), "label": IntField(), "index": IntField()}
    writer = _Writer(str(path), fields, page_size=page, num_workers=1)
    writer.progress = progress
    writer.write_all(_Samples(split))


# ---------------------------------------------------------------------------------------------------------------------
# reading


class _Memory(OSCacheManager):
    """Finds where an image ends as FFCV's does, which also keeps Python objects of some 700 bytes for every image."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        order = np.argsort(reader.alloc_table["ptr"])
        self.ptrs, self.sizes = reader.alloc_table["ptr"][order], reader.alloc_table["size"][order]
        self.context = OSCacheContext(self)


ffcv_loader.OSCacheManager = _Memory


class Source:
    """Reads examples of a .beton file in any order, one reader at a time.

    Args:
        scattered: the file is not in the system's cache: tell the disk which images will be read.
    """

    def __init__(self, path: Path, batch_size: int, workers: int, scattered: bool) -> None:
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
        self._ahead: ReadAhead | None = None
        if scattered:
            with self._loader.memory_manager.context as context:
                self._ahead = ReadAhead(path, context.mmap.base)
        metadata = self._loader.reader.metadata
        self._places = metadata[metadata.dtype.names[0]]  # of the images in the file
        self._image_bytes = int(np.prod(self._loader.reader.handlers["image"].shape))

    def _announce(self, positions: np.ndarray) -> None:
        if self._ahead is not None:
            self._ahead(self._places[positions].tolist(), self._image_bytes)

    def read(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (uint8 images [B, H, W, C], int64 labels [B], int64 positions [B]) of the examples at `positions`.

        The arrays are overwritten after later batches: copy them. Ends a reader that was left unfinished.

        Raises:
            RuntimeError: reading failed (FFCV alone would wait forever).
        """
        self.close()
        Compiler.set_num_threads(self._loader.num_workers)
        reader = self._reader = _Reader(self._loader, positions, self._announce)
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
    """FFCV's thread that fills a queue of batches, made to report failure and to end when asked.

    Args:
        announce: called in the thread with the positions of a batch before it is read.
    """

    failure: BaseException | None = None

    def __init__(self, loader: Loader, positions: np.ndarray, announce: Callable[[np.ndarray], None]) -> None:
        self._announce = announce
        super().__init__(loader, positions)  # the thread starts

    def run_pipeline(self, b_ix: int, batch_indices: np.ndarray, *rest: Any) -> tuple[np.ndarray, ...]:
        self._announce(batch_indices)
        return super().run_pipeline(b_ix, batch_indices, *rest)

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
