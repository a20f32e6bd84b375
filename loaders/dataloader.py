"""torch's own DataLoader, for systems without FFCV and data that must not lie on the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from apart_fast.loaders.base import Loader, to_device
from apart_fast.loaders.datasets.derived import at_hand
from apart_fast.loaders.datasets.mapped import ImageFile
from apart_fast.loaders.datasets.splits import Split
from apart_fast.loaders.plan import EpochPlan
from apart_fast.process.stopping import leave_to_parent

T = TypeVar("T")

_AHEAD = 2  # batches that the disk fetches while another one is trained on


class _Rows(Dataset[tuple[Tensor, Tensor]]):
    """Hands out whole batches: images [B, H, W, C] and labels [B] for a list of positions."""

    def __init__(self, split: Split) -> None:
        self.labels, self._rows = split.labels, split.rows
        self._source: Tensor | ImageFile = split.store
        if split.file is not None:  # workers open it themselves
            self._source = split.file if at_hand(split.file.path) else split.file.scattered()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(positions)
        images = self._source.images if isinstance(self._source, ImageFile) else self._source
        return images[chosen if self._rows is None else self._rows[chosen]], self.labels[chosen]

    def announce(self, positions: np.ndarray) -> None:
        """They will be asked for soon: the disk may begin."""
        if isinstance(self._source, ImageFile) and self._source.is_scattered:
            rows = positions if self._rows is None else self._rows.numpy()[positions]
            self._source.will_need(rows.tolist())


class _BatchSampler(Sampler[list[int]]):
    """Lists of positions in the split; `positions` is replaced before each epoch.

    Args:
        announce: called with the positions of a batch `_AHEAD` batches before it.
    """

    def __init__(self, batch_size: int, announce: Callable[[np.ndarray], None]) -> None:
        self.batch_size, self.positions = batch_size, np.empty(0, dtype=np.int64)
        self._announce = announce

    def __iter__(self) -> Iterator[list[int]]:
        positions, size = self.positions, self.batch_size
        self._announce(positions[: _AHEAD * size])
        for i in range(0, len(positions), size):
            self._announce(positions[i + _AHEAD * size : i + (_AHEAD + 1) * size])
            yield positions[i : i + size].tolist()


def _as_is(batch: T) -> T:
    """Collate nothing (a function with a name, so that workers that are not forked can unpickle it)."""
    return batch


class DataloaderLoader(Loader):
    """`workers` processes (kept across epochs) gather the batches; with 0 the training process does it itself, which is
    the fastest for images of 32x32: sending them between processes costs more than gathering them.

    See `Loader` for the arguments.
    """

    def __init__(self, split: Split, **options: Any) -> None:
        super().__init__(split, **options)
        self._rows = torch.arange(self.batch_size, device=self.device)
        rows = _Rows(split)
        self._sampler = _BatchSampler(self.batch_size, rows.announce)
        self._loader: DataLoader[tuple[Tensor, Tensor]] | None = DataLoader(
            rows,
            batch_sampler=self._sampler,
            num_workers=self.workers,
            collate_fn=_as_is,
            worker_init_fn=leave_to_parent,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # otherwise every epoch draws from torch's global generator
        )

    def _fetch(self, plan: EpochPlan, begin: int, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        assert self._loader is not None, "the loader is closed"
        self._sampler.positions = self.shard[plan.order[begin:]]
        for images, labels in self._loader:
            yield to_device(images, self.device), self._rows[: len(labels)], to_device(labels, self.device)

    def close(self) -> None:
        """End the worker processes."""
        self._loader = None
