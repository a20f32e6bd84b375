"""torch's own DataLoader, for systems without FFCV and data that must not lie on the device."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from apart_fast.loaders.base import Loader, to_device
from apart_fast.loaders.datasets.splits import Split
from apart_fast.loaders.plan import EpochPlan

T = TypeVar("T")


class _Rows(Dataset[tuple[Tensor, Tensor]]):
    """Hands out whole batches: images [B, H, W, C] and labels [B] for a list of positions."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.images, split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(positions)
        return self.images[rows], self.labels[rows]


class _BatchSampler(Sampler[list[int]]):
    """Lists of positions in the split; `positions` is replaced before each epoch."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.positions = batch_size, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[list[int]]:
        positions = self.positions
        for i in range(0, len(positions), self.batch_size):
            yield positions[i : i + self.batch_size].tolist()


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
        self._sampler = _BatchSampler(self.batch_size)
        self._loader: DataLoader[tuple[Tensor, Tensor]] | None = DataLoader(
            _Rows(split),
            batch_sampler=self._sampler,
            num_workers=self.workers,
            collate_fn=_as_is,
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
