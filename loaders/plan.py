"""Order, crops and flips of an epoch, a pure function of (seed, epoch, rank)."""

import numpy as np


def shard_positions(num_examples: int, rank: int, world_size: int) -> np.ndarray:
    """Positions in the split that `rank` owns for good: rank, rank + world_size, ... (int64).

    Every rank owns `num_examples // world_size` of them, so that all take equally many steps; the last
    `num_examples % world_size` examples of the split belong to nobody and are not trained on.
    """
    return rank + world_size * np.arange(num_examples // world_size, dtype=np.int64)


class EpochPlan:
    """What happens to each of `n` examples in one epoch; entry i belongs to the i-th example of the epoch's order.

    Only the raw 64-bit stream of a counter-based generator is used: numpy guarantees that stream for good, but not
    what its `permutation` or `integers` make of it. Nothing is carried from epoch to epoch, so that a resumed run
    sees the same batches.

    Attributes:
        order: int64 [n], a permutation of 0..n-1 (places in the rank's shard).
        offsets: int64 [n, 2], (top, left) of the crop, uniform in 0..2 * padding.
        flips: bool [n], uniform; all False when `flip` is off.
    """

    def __init__(self, n: int, seed: int, epoch: int, padding: int = 0, flip: bool = False, rank: int = 0) -> None:
        """`seed`, `epoch` and `rank` are integers >= 0; changing `padding` or `flip` leaves the order alone."""
        bits = np.random.Philox(np.random.SeedSequence([seed, epoch, rank])).random_raw(4 * n)
        self.order = np.argsort(bits[:n], kind="stable")
        # the remainder of 64 random bits is uniform to within 2**-58 for any padding that fits an image
        self.offsets = (bits[n : 3 * n].reshape(n, 2) % np.uint64(2 * padding + 1)).astype(np.int64)
        self.flips = (bits[3 * n :] & np.uint64(1)).astype(bool) if flip else np.zeros(n, dtype=bool)
