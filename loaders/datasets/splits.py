"""Splits of a data set, and how fixed parts are taken from them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from apart_fast.errors import UserError

# fixed keys: a run's seed must not move examples from one part to another
_VALIDATION_SEED, _SUBSET_SEED = 20100834, 20100835


@dataclass(frozen=True)
class Split:
    """Part of a data set.

    Attributes:
        images: uint8 [N, H, W, C] on the CPU, contiguous, C = 1 or 3.
        labels: int64 [N] on the CPU.
        name: used in the names of files derived from the split.
        cache: folder for such files; None if the split does not come from disk.
    """

    images: torch.Tensor
    labels: torch.Tensor
    name: str = "data"
    cache: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray, suffix: str = "") -> "Split":
        """The examples at `positions` (int64 [M]) in that order; `suffix` is added to the name."""
        rows = torch.from_numpy(positions)
        return Split(self.images[rows], self.labels[rows], self.name + suffix, self.cache)


@dataclass(frozen=True)
class Dataset:
    """Training and test set with the names of the classes; `flip` says whether mirroring keeps the label."""

    name: str
    train: Split
    test: Split
    classes: list[str]
    flip: bool


def take_validation(split: Split, size: int, seed: int = _VALIDATION_SEED) -> tuple[Split, Split]:
    """Divide `split` into (train, validation) with `size` examples in the second.

    Every class gives the same fraction of its examples. The division depends on the labels and `seed` alone, not on
    the seed of a run; both parts keep the order of `split`.

    Raises:
        UserError: `size` is negative or leaves no training example.
    """
    if not 0 <= size < len(split):
        raise UserError(f"a validation set of {size} does not fit into {len(split)} examples: choose a smaller one")
    chosen = np.zeros(len(split), dtype=bool)
    chosen[_stratified(split.labels, seed)[:size]] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen), "-val")


def subset(split: Split, n: int, seed: int = _SUBSET_SEED) -> Split:
    """Fixed subset of `n` examples, every class with the same fraction of its own, for reduced runs.

    A smaller subset is contained in a larger one. The order of `split` is kept.

    Raises:
        UserError: `n` is not in 1..len(split).
    """
    if not 1 <= n <= len(split):
        raise UserError(f"cannot take {n} of {len(split)} examples: choose a number from 1 to {len(split)}")
    return split.take(np.sort(_stratified(split.labels, seed)[:n]), f"-{n}")


def fingerprint(split: Split) -> str:
    """32 hexadecimal digits (BLAKE2b) over shape, images and labels."""
    digest = hashlib.blake2b(repr(tuple(split.images.shape)).encode(), digest_size=16)
    digest.update(split.images.contiguous().numpy().reshape(-1).data)
    digest.update(split.labels.contiguous().numpy().reshape(-1).data)
    return digest.hexdigest()


def _stratified(labels: torch.Tensor, seed: int) -> np.ndarray:
    """Positions in an order of which every beginning holds nearly the same fraction of each class."""
    classes = labels.numpy()
    shuffled = np.argsort(np.random.Philox(np.random.SeedSequence(seed)).random_raw(len(classes)), kind="stable")
    place = np.empty(len(classes))
    for label in np.unique(classes):
        members = shuffled[classes[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]
