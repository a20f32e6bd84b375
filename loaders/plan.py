"""Order, crops and flips of an epoch, a pure function of (seed, epoch), and which rank does which part of it."""

import copy

import numpy as np


def shard_positions(num_examples: int, rank: int, world_size: int, batch_size: int) -> np.ndarray:
    """Positions in the split that `rank` owns for good (int64, ascending).

    Place p of a batch of `batch_size` over all ranks belongs to rank p % world_size, and so does every position of the
    split whose remainder by the batch size is p: all ranks take equally many steps, each with its share of the batch.
    """
    positions = np.arange(num_examples, dtype=np.int64)
    return positions[positions % batch_size % world_size == rank]


def share_of(images: int, rank: int, world_size: int) -> int:
    """How many of a batch of so many images over all ranks are this rank's."""
    return len(range(rank, images, world_size))


class EpochPlan:
    """What happens to each of `n` examples in one epoch; entry i belongs to the i-th example of the epoch's order.

    Only the raw 64-bit stream of a counter-based generator is used: numpy guarantees that stream for good, but not
    what its `permutation` or `integers` make of it. Nothing is carried from epoch to epoch, so that a resumed run
    sees the same batches.

    Attributes:
        order: int64 [n], a permutation of 0..n-1; of a part: of the places in it.
        offsets: int64 [n, 2], (top, left) of the crop, uniform in 0..2 * padding.
        flips: bool [n], uniform; all False when `flip` is off.
    """

    def __init__(self, n: int, seed: int, epoch: int, padding: int = 0, flip: bool = False) -> None:
        """`seed` and `epoch` are integers >= 0; changing `padding` or `flip` leaves the order alone."""
        bits = np.random.Philox(np.random.SeedSequence([seed, epoch, 0])).random_raw(4 * n)
        self.order = np.argsort(bits[:n], kind="stable")
        # the remainder of 64 random bits is uniform to within 2**-58 for any padding that fits an image
        self.offsets = (bits[n : 3 * n].reshape(n, 2) % np.uint64(2 * padding + 1)).astype(np.int64)
        self.flips = (bits[3 * n :] & np.uint64(1)).astype(bool) if flip else np.zeros(n, dtype=bool)

    def part(self, positions: np.ndarray) -> "EpochPlan":
        """The same for some of the examples alone (int64, ascending): each keeps its crop and flip, and its place
        before or behind the others."""
        place = np.full(len(self.order), -1, dtype=np.int64)
        place[positions] = np.arange(len(positions))
        mine = place[self.order] >= 0
        part = copy.copy(self)
        part.order, part.offsets, part.flips = place[self.order[mine]], self.offsets[mine], self.flips[mine]
        return part
