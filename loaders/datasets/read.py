"""Readers of the known data sets' files, by format."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apart_fast.loaders.datasets.table import KnownSet


class Arrays(NamedTuple):
    """What a reader returns: uint8 images [N, H, W, C] (any strides), integer labels [N], names of the classes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.integer]
    classes: Sequence[str]


Reader = Callable[[KnownSet, Path], Arrays]


def read_cifar(known: KnownSet, folder: Path) -> Arrays:
    """CIFAR's pickles, their checksums verified (RuntimeError)."""
    from torchvision import datasets

    train, test = (getattr(datasets, known.torchvision)(folder, train=part) for part in (True, False))
    return Arrays(train.data, np.array(train.targets), test.data, np.array(test.targets), train.classes)


def read_svhn(known: KnownSet, folder: Path) -> Arrays:
    """SVHN's Matlab files, their checksums verified (RuntimeError)."""
    from torchvision import datasets

    train, test = (getattr(datasets, known.torchvision)(folder, split=part) for part in ("train", "test"))
    images = [part.data.transpose(0, 2, 3, 1) for part in (train, test)]  # torchvision has NCHW here
    return Arrays(images[0], train.labels, images[1], test.labels, [str(digit) for digit in range(known.classes)])


def read_mnist(known: KnownSet, folder: Path) -> Arrays:
    """idx files as MNIST has them, plain or compressed: images, labels, test images, test labels."""
    from torchvision import datasets

    # not through torchvision: it wants the files unpacked, and Debian's are compressed
    images, labels, test_images, test_labels = (read_idx(folder, file) for file in known.files)
    classes = getattr(datasets, known.torchvision).classes
    return Arrays(images[..., None], labels, test_images[..., None], test_labels, classes)


def read_idx(folder: Path, file: str) -> NDArray[np.uint8]:
    """uint8 array of an idx file: two zero bytes, type, number of dimensions, big-endian sizes, data.

    Raises:
        ValueError: it is none.
    """
    plain = folder / file
    with open(plain, "rb") if plain.exists() else gzip.open(f"{plain}.gz") as stream:
        data = bytearray(stream.read())  # a bytearray makes the array writable, as torch wants it
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is not an idx file of bytes")
    sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + sizes.nbytes).reshape(sizes)


READERS: dict[str, Reader] = {
    "cifar": read_cifar,
    "svhn": read_svhn,
    "idx": read_mnist,
}
