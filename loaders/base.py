"""What the loaders have in common: the rank's shard, the epoch's plan and its place on the device."""

import operator
from collections.abc import Generator, Iterator
from typing import ClassVar, Self

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.kernels import Crops
from apart_fast.loaders.batch import Batch
from apart_fast.loaders.datasets.splits import Split
from apart_fast.loaders.plan import EpochPlan, shard_positions, share_of


class Loader:
    """Batches of one rank's shard of a split; subclasses supply `_fetch`.

    Two loaders with the same arguments give the same batches, whichever their class. Starting an epoch ends one that
    was left unfinished.

    Args:
        split: uint8 images [N, H, W, C] and labels [N].
        batch_size: examples in a batch over all ranks; the last batch of an epoch may be smaller.
        seed: integer >= 0 that fixes order, crops and flips of every epoch.
        device: where the batches live.
        padding: pixels added on each side before the random crop; 0 = no crop.
        flip: whether to mirror at random.
        rank, world_size: this rank's part of each batch (see `shard_positions`); crops and flips of an example do not
            depend on them.
        workers: processes ("dataloader"; 0 = none) or threads ("ffcv"; at least one); "resident" has no use for them.
            None: `default_workers`, as many as serve the loader best.
        progress: show a bar while data is converted ("ffcv").

    Attributes:
        resident: whether `Batch.images` is the same tensor in every batch.
        batch_size: examples in a batch of this rank.
        num_examples: size of the shard; `Batch.indices` are places in it, 0..num_examples-1.
        shard: int64 [num_examples], their positions in the split.

    Raises:
        UserError: the batch is larger than the data or smaller than the number of ranks, or an argument is out of
            range.
    """

    resident: ClassVar[bool] = False

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        padding: int = 0,
        flip: bool = False,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        _at_least("batch size", batch_size, 1)
        _at_least("seed", seed, 0)
        _at_least("padding", padding, 0)
        workers = self.default_workers() if workers is None else workers
        _at_least("number of workers", workers, 0)
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of 0..{world_size - 1}: give a rank from 0 to world_size - 1")
        if batch_size > len(split):
            raise UserError(
                f"a batch of {batch_size} is larger than the data ({len(split)} examples): "
                f"choose a batch size of at most {len(split)}"
            )
        if batch_size < world_size:
            raise UserError(
                f"a batch of {batch_size} over {world_size} processes leaves some without images: "
                f"choose a batch size of at least {world_size}"
            )
        self.shard = shard_positions(len(split), rank, world_size, batch_size)
        self.num_examples = len(self.shard)
        self.split, self.seed = split, seed
        self.batch_size, self._whole_batch = share_of(batch_size, rank, world_size), batch_size
        self.padding, self.flip = padding, flip
        self.rank, self.world_size = rank, world_size
        self.workers, self.progress = workers, progress
        self.device = torch.device(device)

    @staticmethod
    def default_workers() -> int:
        """Number of workers where none is given."""
        return 0

    def __len__(self) -> int:
        """Steps in an epoch, the same on all ranks."""
        return -(-len(self.split) // self._whole_batch)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of epoch number `epoch` from step `start` on (0 = the whole epoch)."""
        if not 0 <= start <= len(self):
            raise ValueError(f"step {start} is outside the epoch's {len(self)} steps")
        plan = EpochPlan(len(self.split), self.seed, epoch, self.padding, self.flip)
        if self.world_size > 1:
            plan = plan.part(self.shard)
        return self._batches(plan, start)

    def close(self) -> None:
        """End threads and processes; the loader cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, plan: EpochPlan, start: int) -> Generator[Batch, None, None]:
        """Combine what `_fetch` delivers with the epoch's plan, which goes to the device once."""
        begin = start * self.batch_size
        if start >= len(self):  # a run that was stopped at the end of an epoch
            return
        arrays = (plan.order, plan.offsets, plan.flips)
        order, offsets, flips = (to_device(torch.from_numpy(array), self.device) for array in arrays)
        host = torch.from_numpy(plan.order)
        fetched = self._fetch(plan, begin, order) if begin < self.num_examples else iter(())
        for step in range(start, len(self)):
            together = min(self._whole_batch, len(self.split) - step * self._whole_batch)
            part = slice(begin, begin + share_of(together, self.rank, self.world_size))
            if part.stop == part.start:  # an epoch that ends with fewer images than ranks
                images, rows, labels = torch.empty(0), order[:0], order[:0]
            else:
                images, rows, labels = next(fetched)
            upcoming = host[part.stop : part.stop + self.batch_size]
            crops = Crops(rows, order[part], offsets[part], flips[part])
            yield Batch(images, labels, crops, host[part], upcoming, self.resident, together)
            begin = part.stop

    def _fetch(self, plan: EpochPlan, begin: int, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (images, rows, labels) of each batch from place `begin` of the plan's order on.

        `order` is the plan's order on the device.
        """
        raise NotImplementedError


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without waiting for it; on the CPU the tensor itself."""
    # torch keeps a pinned block from reuse until the copy has run, so the short-lived block is safe
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _at_least(what: str, value: int, least: int) -> None:
    if operator.index(value) < least:
        raise UserError(f"the {what} is {value}: choose {least} or more")
