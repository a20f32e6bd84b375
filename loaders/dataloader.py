"""torch's own DataLoader, for systems without FFCV and data that must not lie on the device."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from apart_fast.loaders.base import Loader, to_device
from apart_fast.loaders.plan import EpochPlan


class _Rows(Dataset):
    """Hands out whole batches: images [B, H, W, C] and labels [B] for a list of positions."""

    def __init__(self, split):
        self.images, self.labels = split.images, split.labels

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, positions):
        positions = torch.tensor(positions)
        return self.images[positions], self.labels[positions]


class _Batches(Sampler):
    """Lists of positions in the split; `positions` is replaced before each epoch."""

    def __init__(self, batch_size):
        self.batch_size, self.positions = batch_size, []

    def __iter__(self):
        positions = self.positions
        for i in range(0, len(positions), self.batch_size):
            yield positions[i : i + self.batch_size].tolist()


def _as_is(batch):
    """Collate nothing (a function with a name, so that workers that are not forked can unpickle it)."""
    return batch


class DataloaderLoader(Loader):
    """`workers` processes (kept across epochs) gather the batches; with 0 the training process does it itself, which is
    the fastest for images of 32x32: sending them between processes costs more than gathering them.

    See `Loader` for the arguments.
    """

    def __init__(self, split, **options):
        super().__init__(split, **options)
        self._rows = torch.arange(self.batch_size, device=self.device)
        self._sampler = _Batches(self.batch_size)
        self._loader = DataLoader(
            _Rows(split),
            batch_sampler=self._sampler,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # otherwise every epoch draws from torch's global generator
        )

    def _fetch(
        self, plan: EpochPlan, begin: int, order: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        self._sampler.positions = self.share[plan.order[begin:]]
        for images, labels in self._loader:
            yield to_device(images, self.device), self._rows[: len(labels)], to_device(labels, self.device)

    def close(self) -> None:
        """End the worker processes."""
        self._loader = None
