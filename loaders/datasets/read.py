"""Readers of the known data sets' files, by format."""

import gzip
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apart_fast.loaders.datasets.table import KnownSet


class Arrays(NamedTuple):
    """What a reader returns: uint8 images [N, H, W, C] (any strides), integer labels [N], names of the classes, and
    which files are not the published ones."""

    images: NDArray[np.uint8]
    labels: NDArray[np.integer]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.integer]
    classes: Sequence[str]
    differing: Sequence[str] = ()


_MOST = 10  # times the published number of images: more is taken for damage

Reader = Callable[[KnownSet, Path], Arrays]


def read_cifar(known: KnownSet, folder: Path) -> Arrays:
    """CIFAR's pickles, their checksums verified (RuntimeError)."""
    from torchvision import datasets

    train, test = (getattr(datasets, known.torchvision)(folder, train=part) for part in (True, False))
    return Arrays(train.data, np.array(train.targets), test.data, np.array(test.targets), known.names)


def read_svhn(known: KnownSet, folder: Path) -> Arrays:
    """SVHN's Matlab files, their checksums verified (RuntimeError)."""
    from torchvision import datasets

    train, test = (getattr(datasets, known.torchvision)(folder, split=part) for part in ("train", "test"))
    images = [part.data.transpose(0, 2, 3, 1) for part in (train, test)]  # torchvision has NCHW here
    return Arrays(images[0], train.labels, images[1], test.labels, known.names)


def read_mnist(known: KnownSet, folder: Path) -> Arrays:
    """idx files as MNIST has them, plain or compressed: images, labels, test images, test labels."""
    from torchvision import datasets

    # not through torchvision: it wants the files unpacked, and Debian's are compressed
    height, width, _ = known.shape
    most = _MOST * max(known.sizes)
    found = [
        _read_idx(folder, file, shape, most) for file, shape in zip(known.files, 2 * [(height, width), ()], strict=True)
    ]
    (images, labels, test_images, test_labels), sums = zip(*found, strict=True)
    # torchvision has the sums of the archives; unpacked or packed again, the content is the same
    published = dict(getattr(datasets, known.torchvision).resources)
    differing = [
        file
        for file, found_sum, known_sum in zip(known.files, sums, known.md5, strict=True)
        if found_sum != known_sum and not _is_published(folder, file, published)
    ]
    return Arrays(images[..., None], labels, test_images[..., None], test_labels, known.names, differing)


def _is_published(folder: Path, file: str, published: dict[str, str]) -> bool:
    archive = folder / f"{file}.gz"
    if (folder / file).exists() or archive.name not in published:
        return False
    with open(archive, "rb") as stream:
        return hashlib.file_digest(stream, _md5).hexdigest() == published[archive.name]


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


def _read_idx(folder: Path, file: str, shape: tuple[int, ...], most: int) -> tuple[NDArray[np.uint8], str]:
    """uint8 array [N, *shape] of an idx file, and the MD5 sum of its content.

    The file: two zero bytes, type, number of dimensions, big-endian sizes, data. No more is unpacked of it than the
    sizes say.

    Args:
        most: a larger N is not believed.

    Raises:
        ValueError: it is none, has another shape, or is shorter or longer than it says.
    """
    plain = folder / file
    with open(plain, "rb") if plain.exists() else gzip.open(f"{plain}.gz") as stream:
        head = stream.read(4)
        if head[:3] != b"\0\0\x08" or len(head) < 4:
            raise ValueError(f"{file} is not an idx file of bytes")
        if head[3] != 1 + len(shape):
            raise ValueError(f"{file} has {head[3]} dimensions instead of {1 + len(shape)}")
        head += stream.read(4 * head[3])
        sizes = tuple(np.frombuffer(head, ">u4", offset=4).tolist())
        if len(sizes) != 1 + len(shape) or sizes[1:] != shape or sizes[0] > most:
            raise ValueError(f"{file} says that it holds {sizes}: expected {shape} each, and at most {most}")
        size = math.prod(sizes)
        data = bytearray(stream.read(size + 1))  # a bytearray makes the array writable, as torch wants it
    if len(data) != size:
        raise ValueError(f"{file} is {'longer' if len(data) > size else 'shorter'} than it says")
    digest = _md5()
    digest.update(head)
    digest.update(data)
    return np.frombuffer(data, np.uint8).reshape(sizes), digest.hexdigest()


READERS: dict[str, Reader] = {
    "cifar": read_cifar,
    "svhn": read_svhn,
    "idx": read_mnist,
}
