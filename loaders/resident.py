"""Images that live on the device: no copies during training."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from apart_fast.device import available_bytes
from apart_fast.errors import UserError
from apart_fast.loaders.base import Loader, to_device
from apart_fast.loaders.datasets.splits import Split
from apart_fast.loaders.plan import EpochPlan


class ResidentLoader(Loader):
    """The rank's whole shard lies on the device (150 MB for CIFAR-10); a batch is a view and a list of rows. On the CPU
    it is the data set's own images, uncopied.

    See `Loader` for the arguments.

    Raises:
        UserError: the device, or the host, has not enough memory; the line names a loader that needs less.
    """

    resident = True

    def __init__(self, split: Split, **options: Any) -> None:
        super().__init__(split, **options)
        mine = split.take(self.shard)
        self.labels = mine.labels.to(self.device)
        if self.device.type == "cpu":
            if split.file is not None:  # what is not in a file is in memory already
                _check_room(mine.nbytes, available_bytes(), "the memory")
            assert mine.rows is not None
            self.images, self._rows = split.store, mine.rows
        else:
            self.images, self._rows = _on_device(mine, self.device), torch.arange(len(mine), device=self.device)

    def _fetch(self, plan: EpochPlan, begin: int, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rows, labels = self._rows[order], self.labels[order]
        for i in range(begin, self.num_examples, self.batch_size):
            part = slice(i, i + self.batch_size)
            yield self.images, rows[part], labels[part]

    def close(self) -> None:
        """Give the device's memory back (once no batch refers to it)."""
        self.images = self.labels = torch.empty(0)


def _on_device(split: Split, device: torch.device) -> Tensor:
    """A copy of all images, which never lies in host memory as a whole."""
    _check_room(split.nbytes, _free_bytes(device), str(device))
    try:
        images = torch.empty(split.shape, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        _check_room(split.nbytes, 0, str(device))
        raise
    place = 0
    for block in split.blocks():
        images[place : place + len(block)] = to_device(block, device)
        place += len(block)
    return images


def _free_bytes(device: torch.device) -> float:
    """Of a GPU's memory, with what torch holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _check_room(needed: int, free: float, where: str) -> None:
    if needed > free:
        others = [name for name in ("ffcv", "dataloader") if name != "ffcv" or find_spec("ffcv") is not None]
        raise UserError(
            f"the images ({needed / 1e9:.3g} GB) do not fit into {where} ({free / 1e9:.3g} GB free): choose "
            f"--loader {' or --loader '.join(others)}, which read{'s' * (len(others) == 1)} them from disk as they are "
            "needed"
        )
