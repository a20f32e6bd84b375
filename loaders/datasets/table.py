"""The known data sets, a row each: what it consists of, and who reads it. Imported without torch."""

from dataclasses import dataclass
from pathlib import Path

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@dataclass(frozen=True)
class KnownSet:
    """A data set with a name.

    Attributes:
        torchvision: name of the class in torchvision.datasets that downloads it.
        files: what the set consists of.
        reader: key of `apart_fast.loaders.datasets.read.READERS`, the format of the files.
        shape: (H, W, C) of every image.
        classes: how many there are.
        sizes: number of training and of test images.
        flip: whether mirroring keeps the label.
        archive: file that holds `files` and that a user may have fetched by hand, if there is one.
        places: folders where the files may lie, besides the data folder: relative to it, or absolute.
        inside: folder in which torchvision puts the files.
        parts: arguments of torchvision's class, one call for each.
        needs: package without which the files cannot be read.
    """

    torchvision: str
    files: tuple[str, ...]
    reader: str
    shape: tuple[int, int, int]
    classes: int
    sizes: tuple[int, int]
    flip: bool = True
    archive: str = ""
    places: tuple[str | Path, ...] = ()
    inside: str = ""
    parts: tuple[dict[str, str], ...] = ({},)
    needs: str = ""


KNOWN = {
    "cifar10": KnownSet(
        torchvision="CIFAR10",
        files=("cifar-10-batches-py",),
        reader="cifar",
        shape=(32, 32, 3),
        classes=10,
        sizes=(50_000, 10_000),
        archive="cifar-10-python.tar.gz",
    ),
    "cifar100": KnownSet(
        torchvision="CIFAR100",
        files=("cifar-100-python",),
        reader="cifar",
        shape=(32, 32, 3),
        classes=100,
        sizes=(50_000, 10_000),
        archive="cifar-100-python.tar.gz",
    ),
    "svhn": KnownSet(
        torchvision="SVHN",
        files=("train_32x32.mat", "test_32x32.mat"),
        reader="svhn",
        shape=(32, 32, 3),
        classes=10,
        sizes=(73_257, 26_032),
        flip=False,  # a mirrored digit is another sign
        parts=({"split": "train"}, {"split": "test"}),
        needs="scipy",
    ),
    "fashion-mnist": KnownSet(
        torchvision="FashionMNIST",
        files=(
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        ),
        reader="idx",
        shape=(28, 28, 1),
        classes=10,
        sizes=(60_000, 10_000),
        places=("FashionMNIST/raw", DEBIAN_FASHION_MNIST),
        inside="FashionMNIST/raw",
    ),
}

FOLDER = "folder"  # any folder of images (see folder.py)
DATASET_NAMES: tuple[str, ...] = (*KNOWN, FOLDER)
