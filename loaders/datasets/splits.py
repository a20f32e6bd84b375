"""Splits of a data set, and how fixed parts are taken from them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from apart_fast.errors import UserError
from apart_fast.loaders.datasets.fingerprints import Fingerprint, digest
from apart_fast.loaders.datasets.mapped import ImageFile

# fixed keys: a run's seed must not move examples from one part to another
_VALIDATION_SEED, _SUBSET_SEED = 20100834, 20100835


_BLOCK = 2**24  # bytes of images that are gathered at a time


class Kept(NamedTuple):
    """The fingerprint that a whole store had with the labels of this digest, known from when it was written."""

    fingerprint: str
    labels: str


@dataclass(frozen=True)
class Split:
    """Part of a data set. Parts of parts share the images and know by number which are theirs.

    Attributes:
        store: uint8 [M, H, W, C] on the CPU, contiguous, C = 1 or 3; in memory, or mapped from a file.
        labels: int64 [N] on the CPU.
        name: used in the names of files derived from the split.
        cache: folder for such files; None if the split does not come from disk.
        rows: int64 [N] on the CPU, the place of each example in `store`; None: all of them in order.
        file: where the store is mapped from.
        kept: what is known of the whole store.
    """

    store: torch.Tensor
    labels: torch.Tensor
    name: str = "data"
    cache: Path | None = None
    rows: torch.Tensor | None = None
    file: ImageFile | None = None
    kept: Kept | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> torch.Tensor:
        """uint8 [N, H, W, C]: the store itself if all of it belongs to the split, else a copy of what does."""
        return self.store if self.rows is None else self.store[self.rows]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self), *self.store.shape[1:])

    @property
    def nbytes(self) -> int:
        """Of the images."""
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, positions: np.ndarray, suffix: str = "") -> "Split":
        """The examples at `positions` (int64 [M]) in that order; `suffix` is added to the name."""
        chosen = torch.from_numpy(positions)
        return replace(
            self,
            labels=self.labels[chosen],
            name=self.name + suffix,
            rows=chosen if self.rows is None else self.rows[chosen],
        )

    def blocks(self) -> Iterator[torch.Tensor]:
        """The images in order, uint8 [K, H, W, C] at a time: some 16 MiB, or one image."""
        size = max(1, _BLOCK // self.store[0].nbytes)
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield self.store[part] if self.rows is None else self.store[self.rows[part]]


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
    if split.rows is None and split.kept is not None and split.kept.labels == digest(split.labels.contiguous().numpy()):
        return split.kept.fingerprint
    found = Fingerprint(split.shape)
    for block in split.blocks():
        found.add(block.numpy())
    return found.finish(split.labels.contiguous().numpy())


def content_key(split: Split) -> str:
    """32 hexadecimal digits that change with images, labels and their order, like those of `fingerprint`; where more is
    known of the images, they are not read for it."""
    if split.rows is None or split.kept is None:
        return fingerprint(split)
    labels = split.labels.contiguous().numpy()
    return digest(split.kept.fingerprint.encode(), split.rows.contiguous().numpy(), labels)


def _stratified(labels: torch.Tensor, seed: int) -> np.ndarray:
    """Positions in an order of which every beginning holds nearly the same fraction of each class."""
    classes = labels.numpy()
    shuffled = np.argsort(np.random.Philox(np.random.SeedSequence(seed)).random_raw(len(classes)), kind="stable")
    place = np.empty(len(classes))
    for label in np.unique(classes):
        members = shuffled[classes[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]
