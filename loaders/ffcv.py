"""FFCV: the split is converted once to a .beton file, then read by compiled code in a thread of its own."""

import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apart_fast.device import usable_cores
from apart_fast.errors import UserError
from apart_fast.loaders.base import Loader, to_device
from apart_fast.loaders.datasets.derived import Note, at_hand, check_room, provide
from apart_fast.loaders.datasets.splits import Split, content_key
from apart_fast.loaders.plan import EpochPlan

MOST_WORKERS = 8  # where no number is asked for: more only make numba's compilation slower


class FfcvLoader(Loader):
    """Batches read from `<cache>/<name>-<key>.beton`, which is written when there is none for this content.

    The file holds the whole split, so that all ranks share it; each reads its own shard. `workers` are threads, no
    more of them than cores that may be used; one reads hundreds of thousands of small images a second, and more make
    numba's compilation slower. The first batch of a loader waits a few seconds for that compilation.

    Args:
        cache: folder of the .beton file; by default the split's own.

    See `Loader` for the other arguments.

    Raises:
        UserError: ffcv is missing, no space is left, or the file is damaged.
    """

    @staticmethod
    def default_workers() -> int:
        """One for each core that may be used, at most `MOST_WORKERS`."""
        return min(usable_cores(), MOST_WORKERS)

    def __init__(self, split: Split, *, cache: str | os.PathLike | None = None, **options: Any) -> None:
        super().__init__(split, **options)
        backend = import_backend()
        folder = cache or split.cache
        if folder is None:
            raise ValueError("a split that does not come from disk needs the argument `cache`")
        self.path = Path(folder) / f"{split.name}-{content_key(split)}.beton"

        def write(path: Path) -> Note:
            check_room(path.parent, split.nbytes, f"{len(split)} images for FFCV")
            backend.write(path, split, self.progress)
            return _describe(path)

        provide(self.path, write, _look, rewrite=False)
        self._rows = torch.arange(self.batch_size, device=self.device)
        workers = min(max(self.workers, 1), usable_cores())
        self._source = backend.Source(self.path, self.batch_size, workers, scattered=not at_hand(self.path))

    def _fetch(self, plan: EpochPlan, begin: int, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        positions = self.shard[plan.order[begin:]]
        done = 0
        with closing(self._source.read(positions)) as reader:
            for images, labels, read in reader:
                count = len(labels)
                if not np.array_equal(read, positions[done : done + count]):
                    raise UserError(f"{self.path} gave other examples than asked for: delete it and run again")
                done += count
                yield _copy(images, self.device), self._rows[:count], _copy(labels, self.device)

    def close(self) -> None:
        """End the reader's thread."""
        self._source.close()


def import_backend() -> ModuleType:
    """The module `ffcv_backend`, with torch's number of threads as it was (importing ffcv sets it to 1)."""
    threads = torch.get_num_threads()
    try:
        importlib.import_module("ffcv")
        from apart_fast.loaders import ffcv_backend
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "ffcv":
            message = "ffcv is not installed: pip install apart_fast[ffcv], or choose another loader"
        else:
            message = f"ffcv cannot be loaded ({error}): install it again, or choose another loader"
        raise UserError(message) from error
    finally:
        torch.set_num_threads(threads)
    return ffcv_backend


def _describe(path: Path) -> Note:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def _look(path: Path, note: Note, read: bool) -> bool:
    return not read or note["blake2b"] == _describe(path)["blake2b"]


def _copy(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of its own on `device`: FFCV overwrites its buffers a few batches later."""
    if device.type == "cuda":
        return to_device(torch.from_numpy(array), device)
    return torch.from_numpy(array.copy())  # torch's threads would copy too, then spin beside FFCV's
