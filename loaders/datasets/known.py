"""Data sets by name: four that torchvision can fetch, and any folder of images."""

import errno
import gzip
import os
import pickle
import socket
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from apart_fast.errors import UserError
from apart_fast.loaders.datasets.folder import CACHE, load_folder
from apart_fast.loaders.datasets.splits import Dataset, Split

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_TIMEOUT = 10.0  # seconds without an answer after which a download is given up


def load_dataset(name: str, root: str | os.PathLike, *, download: bool = True, progress: bool = True) -> Dataset:
    """Load a data set of the table `DATASETS` from the folder `root`.

    Existing files in `root` are never altered; what is derived from them goes to `root/.apart_fast`. A named set may
    also lie in `root` as a folder of images (see `load_folder`); Fashion-MNIST is also taken from Debian's package.

    Args:
        download: fetch a named set that is missing.
        progress: show a bar while a folder of images is decoded for the first time.

    Raises:
        UserError: the set is unknown, missing, half-downloaded or cannot be fetched; for folders of images: mixed
            sizes, an empty class, an unreadable image; no space left.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name](Path(root).expanduser(), download=download, progress=progress)


@dataclass(frozen=True)
class _Known:
    """A set with a name.

    Attributes:
        torchvision: name of the class in torchvision.datasets.
        files: what the set consists of.
        read: folder -> (training images, labels, test images, labels, class names).
        shape, classes, sizes: (H, W, C) of every image, the number of classes, of training and of test images.
        flip: whether mirroring keeps the label.
        archive: file that holds `files` and that a user may have fetched by hand, if there is one.
        places: folders where the files may lie, besides the data folder: relative to it, or absolute.
        inside: folder in which torchvision puts the files.
        parts: arguments of torchvision's class, one call for each.
        needs: package without which the files cannot be read.
    """

    torchvision: str
    files: tuple[str, ...]
    read: Callable
    shape: tuple[int, int, int]
    classes: int
    sizes: tuple[int, int]
    flip: bool = True
    archive: str = ""
    places: tuple[str | Path, ...] = ()
    inside: str = ""
    parts: tuple[dict, ...] = ({},)
    needs: str = ""


def _load_known(name: str, root: Path, *, download: bool, progress: bool) -> Dataset:
    known = _KNOWN[name]
    source = _find(known, root)
    if source is None and (root / "train").is_dir():
        return _from_folder(name, known, root, progress)
    if known.needs and find_spec(known.needs) is None:
        raise UserError(f"{name} cannot be read without {known.needs}: pip install {known.needs}")
    if source is None:
        _fetch(name, known, root, download)
        source = root
    try:
        *arrays, classes = known.read(source)
        images, labels, test_images, test_labels = (np.ascontiguousarray(array) for array in arrays)
        for x, y in ((images, labels), (test_images, test_labels)):
            if x.shape != (len(y), *known.shape) or not len(y) or not 0 <= y.min() <= y.max() < known.classes:
                raise ValueError(f"{x.shape} images do not fit {len(y)} labels")
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, zlib.error, pickle.PickleError) as error:
        raise UserError(
            f"{name} in {source} is incomplete or damaged ({_reason(error)}): "
            f"delete {' and '.join(known.files)} there and run again"
        ) from error
    train, test = (
        Split(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), f"{name}-{part}", root / CACHE)
        for part, x, y in (("train", images, labels), ("test", test_images, test_labels))
    )
    return Dataset(name, train, test, list(classes), known.flip)


def _from_folder(name: str, known: _Known, root: Path, progress: bool) -> Dataset:
    dataset = load_folder(root, name=name, flip=known.flip, progress=progress)
    found, wanted = (*dataset.train.images.shape[1:], len(dataset.classes)), (*known.shape, known.classes)
    if found != wanted:
        raise UserError(
            f"the images in {root} are not {name} (height, width, channels, classes are {found}, not {wanted}): "
            "load them as data set 'folder'"
        )
    sizes = (len(dataset.train), len(dataset.test))
    if sizes != known.sizes:  # not an error: reduced copies are useful
        warnings.warn(f"{root} holds {sizes} training and test images of {name} instead of {known.sizes}", stacklevel=2)
    return dataset


def _find(known: _Known, root: Path) -> Path | None:
    """The folder that holds any of the files (a half of them is reported as damage, never completed in place)."""
    for place in (root, *(root / p for p in known.places)):
        if any((place / (file + ending)).exists() for file in known.files for ending in ("", ".gz")):
            return place
    return None


def _fetch(name: str, known: _Known, root: Path, download: bool) -> None:
    """Unpack or download the files into a temporary folder, then move them to `root`."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, extract_archive

    maker = getattr(datasets, known.torchvision)
    archive = root / known.archive if known.archive and (root / known.archive).exists() else None
    if archive and not check_integrity(archive, maker.tgz_md5):
        raise UserError(f"{archive} is incomplete or damaged: delete it and run again")
    advice = (
        f"put {known.archive or ' and '.join(known.files)} there, "
        "or the images as train/<class>/*.png and test/<class>/*.png"
    )
    if not archive and not download:
        raise UserError(f"{name} is not in {root}: allow the download, or {advice}")
    timeout = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as temporary:
            if archive:
                extract_archive(str(archive), temporary)
            else:
                socket.setdefaulttimeout(_TIMEOUT)
                for part in known.parts:
                    maker(temporary, download=True, **part)
            for file in known.files:
                try:
                    os.replace(Path(temporary, known.inside, file), root / file)
                except OSError as error:  # a folder that another process has just put there
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
    except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError) as error:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"no space left for {name} in {root}: free some space or choose another folder") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"cannot write to {root} ({_reason(error)}): choose a folder that can be written"
            ) from error
        raise UserError(f"{name} is not in {root} and cannot be fetched ({_reason(error)}): {advice}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _reason(error: BaseException) -> str:
    """First sentence of an error's text, on one line."""
    return " ".join(str(getattr(error, "reason", error)).split()).split(". ")[0][:160] or type(error).__name__


def _read_cifar(torchvision: str, folder: Path) -> tuple:
    from torchvision import datasets

    train, test = (getattr(datasets, torchvision)(folder, train=part) for part in (True, False))
    return train.data, np.array(train.targets), test.data, np.array(test.targets), train.classes


def _read_svhn(folder: Path) -> tuple:
    from torchvision.datasets import SVHN

    train, test = (SVHN(folder, split=part) for part in ("train", "test"))
    images = [part.data.transpose(0, 2, 3, 1) for part in (train, test)]  # torchvision has NCHW here
    return images[0], train.labels, images[1], test.labels, [str(digit) for digit in range(10)]


def _read_fashion_mnist(folder: Path) -> tuple:
    from torchvision.datasets import FashionMNIST

    # not through torchvision: it wants the files unpacked, and Debian's are compressed
    train, labels, test, test_labels = (_read_idx(folder, file) for file in _FASHION_MNIST_FILES)
    return train[..., None], labels, test[..., None], test_labels, FashionMNIST.classes


def _read_idx(folder: Path, file: str) -> np.ndarray:
    """uint8 array of an idx file: two zero bytes, type, number of dimensions, big-endian sizes, data."""
    plain = folder / file
    with open(plain, "rb") if plain.exists() else gzip.open(f"{plain}.gz") as stream:
        data = bytearray(stream.read())  # a bytearray makes the array writable, as torch wants it
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is not an idx file of bytes")
    sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + sizes.nbytes).reshape(sizes)


_FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

_KNOWN = {
    "cifar10": _Known(
        "CIFAR10",
        ("cifar-10-batches-py",),
        partial(_read_cifar, "CIFAR10"),
        (32, 32, 3),
        10,
        (50_000, 10_000),
        archive="cifar-10-python.tar.gz",
    ),
    "cifar100": _Known(
        "CIFAR100",
        ("cifar-100-python",),
        partial(_read_cifar, "CIFAR100"),
        (32, 32, 3),
        100,
        (50_000, 10_000),
        archive="cifar-100-python.tar.gz",
    ),
    "svhn": _Known(
        "SVHN",
        ("train_32x32.mat", "test_32x32.mat"),
        _read_svhn,
        (32, 32, 3),
        10,
        (73_257, 26_032),
        flip=False,  # a mirrored digit is another sign
        parts=({"split": "train"}, {"split": "test"}),
        needs="scipy",
    ),
    "fashion-mnist": _Known(
        "FashionMNIST",
        _FASHION_MNIST_FILES,
        _read_fashion_mnist,
        (28, 28, 1),
        10,
        (60_000, 10_000),
        places=("FashionMNIST/raw", DEBIAN_FASHION_MNIST),
        inside="FashionMNIST/raw",
    ),
}


def _load_any_folder(root: Path, *, download: bool, progress: bool) -> Dataset:
    return load_folder(root, progress=progress)  # there is nothing to download


DATASETS: dict[str, Callable[..., Dataset]] = {
    **{name: partial(_load_known, name) for name in _KNOWN},
    "folder": _load_any_folder,
}
