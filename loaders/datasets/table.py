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
        names: of the classes, in the order of their labels.
        sizes: number of training and of test images.
        flip: whether mirroring keeps the label.
        archive: file that holds `files` and that a user may have fetched by hand, if there is one.
        places: folders where the files may lie, besides the data folder: relative to it, or absolute.
        inside: folder in which torchvision puts the files.
        parts: arguments of torchvision's class, one call for each.
        needs: package without which the files cannot be read.
        md5: of `files`, unpacked, where torchvision does not compare them itself; taken from Debian's package.
    """

    torchvision: str
    files: tuple[str, ...]
    reader: str
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    sizes: tuple[int, int]
    flip: bool = True
    archive: str = ""
    places: tuple[str | Path, ...] = ()
    inside: str = ""
    parts: tuple[dict[str, str], ...] = ({},)
    needs: str = ""
    md5: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.names)


DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

KNOWN = {
    "cifar10": KnownSet(
        torchvision="CIFAR10",
        files=("cifar-10-batches-py",),
        reader="cifar",
        shape=(32, 32, 3),
        names=CIFAR10,
        sizes=(50_000, 10_000),
        archive="cifar-10-python.tar.gz",
    ),
    "cifar100": KnownSet(
        torchvision="CIFAR100",
        files=("cifar-100-python",),
        reader="cifar",
        shape=(32, 32, 3),
        names=CIFAR100,
        sizes=(50_000, 10_000),
        archive="cifar-100-python.tar.gz",
    ),
    "svhn": KnownSet(
        torchvision="SVHN",
        files=("train_32x32.mat", "test_32x32.mat"),
        reader="svhn",
        shape=(32, 32, 3),
        names=DIGITS,
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
        names=FASHION,
        sizes=(60_000, 10_000),
        places=("FashionMNIST/raw", DEBIAN_FASHION_MNIST),
        inside="FashionMNIST/raw",
        md5=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
}

FOLDER = "folder"  # any folder of images (see folder.py)
HUGGING_FACE = "hf"  # before a colon and the name of a data set (see hugging_face.py)
DATASET_NAMES: tuple[str, ...] = (*KNOWN, FOLDER, HUGGING_FACE)
