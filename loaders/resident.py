"""Images that live on the device: no copies during training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from apart_fast.loaders.base import Loader
from apart_fast.loaders.datasets.splits import Split
from apart_fast.loaders.plan import EpochPlan


class ResidentLoader(Loader):
    """The rank's whole shard lies on the device (150 MB for CIFAR-10); a batch is a view and a list of rows.

    See `Loader` for the arguments.
    """

    resident = True

    def __init__(self, split: Split, **options: Any) -> None:
        super().__init__(split, **options)
        # the shard as a view; `contiguous` copies only when there is more than one rank
        part = slice(self.rank, self.num_examples * self.world_size, self.world_size)
        self.images = split.images[part].contiguous().to(self.device)
        self.labels = split.labels[part].contiguous().to(self.device)

    def _fetch(self, plan: EpochPlan, begin: int, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        labels = self.labels[order]
        for i in range(begin, self.num_examples, self.batch_size):
            part = slice(i, i + self.batch_size)
            yield self.images, order[part], labels[part]

    def close(self) -> None:
        """Give the device's memory back (once no batch refers to it)."""
        self.images = self.labels = torch.empty(0)
