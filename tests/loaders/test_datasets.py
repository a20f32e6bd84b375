"""Data sets from folders and files, and what is said when they are not in order."""

import errno
import gzip
import os
import pickle
import shutil
import struct
import sys
import tarfile
import time
import urllib.error
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from apart_fast.errors import UserError
from apart_fast.loaders import DATASETS, Split, fingerprint, load_dataset, subset, take_validation
from apart_fast.loaders.datasets import folder, load, table

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def draw(path, value, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, lossless=True)
    return pixels


def make_folder(root, classes=("a", "b"), suffix="png", **options):
    """Three training images and one test image of each class; returns {path: pixels}."""
    names = [("train", c, i) for c in classes for i in range(3)] + [("test", c, 0) for c in classes]
    paths = [root / part / c / f"{i}.{suffix}" for part, c, i in names]
    return {path: draw(path, value, **options) for value, path in enumerate(paths)}


def snapshot(root):
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and folder.CACHE not in p.parts}


@pytest.fixture
def untouched(tmp_path):
    """The folder for a test of bad input: whatever the test puts there before loading must stay as it is."""
    yield tmp_path
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".fetching-*"))


def refuse(name, root, message, **options):
    before = snapshot(root)
    with pytest.raises(UserError, match=message) as raised:
        load_dataset(name, root, progress=False, **options)
    assert "\n" not in str(raised.value)
    assert snapshot(root) == before


@pytest.fixture
def offline(monkeypatch):
    """No network, and none of Debian's files."""

    def fail(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    hide_debian(monkeypatch)


def hide_debian(monkeypatch):
    for name, known in table.KNOWN.items():
        monkeypatch.setitem(table.KNOWN, name, replace(known, places=known.places[:1]))


# ---------------------------------------------------------------------------------------------------------------------
# folders of images


@pytest.mark.parametrize("suffix", ["png", "webp", "PNG"])
def test_folder(suffix, tmp_path):
    pixels = make_folder(tmp_path, classes=("b", "a", "Z"), suffix=suffix)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    dataset = load_dataset("folder", tmp_path, progress=False)
    assert dataset.classes == ["Z", "a", "b"] and dataset.flip
    assert dataset.train.images.shape == (9, 5, 6, 3) and dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and dataset.test.labels.tolist() == [0, 1, 2]
    for split, part in ((dataset.train, "train"), (dataset.test, "test")):
        expected = [pixels[path] for path in sorted(pixels) if path.parts[-3] == part]
        assert np.array_equal(split.images.numpy(), expected)


def test_folder_of_jpegs(tmp_path):
    make_folder(tmp_path, suffix="jpeg")
    path = tmp_path / "test" / "b" / "0.jpeg"
    assert np.array_equal(load_dataset("folder", tmp_path).test.images[1], np.asarray(Image.open(path)))


def test_folder_is_gray_only_if_all_images_are(tmp_path):
    make_folder(tmp_path, mode="L")
    gray = load_dataset("folder", tmp_path, progress=False).train.images
    assert gray.shape == (6, 5, 6, 1)
    draw(tmp_path / "test" / "a" / "colour.png", 99)
    mixed = load_dataset("folder", tmp_path, progress=False).train.images
    assert torch.equal(mixed, gray.expand(-1, -1, -1, 3))


def test_folder_is_decoded_once_and_again_when_it_changed(tmp_path, monkeypatch):
    make_folder(tmp_path)
    decoded = []
    decode = folder._decode_one
    monkeypatch.setattr(folder, "_decode_one", lambda path: decoded.append(path) or decode(path))
    first = load_dataset("folder", tmp_path, progress=False)
    assert len(decoded) == 8
    second = load_dataset("folder", tmp_path, progress=False)
    assert len(decoded) == 8 and fingerprint(first.train) == fingerprint(second.train)
    changed = tmp_path / "train" / "b" / "1.png"
    draw(changed, 50)
    os.utime(changed, ns=(1, 1))
    third = load_dataset("folder", tmp_path, progress=False)
    assert len(decoded) == 16 and fingerprint(third.train) != fingerprint(first.train)
    # a damaged cache is only a cache
    for cache in (tmp_path / folder.CACHE).iterdir():
        data = bytearray(cache.read_bytes())
        data[-300] ^= 1
        cache.write_bytes(data)
    assert fingerprint(load_dataset("folder", tmp_path, progress=False).train) == fingerprint(third.train)
    assert len(decoded) == 24


def test_mixed_sizes(untouched):
    make_folder(untouched)
    draw(untouched / "test" / "b" / "odd.png", 1, size=(7, 5))
    refuse("folder", untouched, r"odd.png is 7x5 but .*train/a/0.png is 6x5: resize the images to one size")


def test_empty_class(untouched):
    make_folder(untouched)
    (untouched / "train" / "c").mkdir()
    refuse("folder", untouched, "train/c holds no png, jpg or webp: add images or remove the folder")


def test_class_without_test_images(untouched):
    make_folder(untouched)
    draw(untouched / "train" / "c" / "0.png", 1)
    refuse("folder", untouched, "class 'c' is in only one of train and test")


@pytest.mark.parametrize("how", ["cut", "text", "empty", "dangling"])
def test_unreadable_image(how, untouched):
    make_folder(untouched)
    victim = untouched / "train" / "b" / "2.png"
    data = victim.read_bytes()
    victim.unlink()
    if how == "dangling":
        victim.symlink_to(untouched / "nowhere")
    else:
        victim.write_bytes({"cut": data[: len(data) // 2], "text": b"not an image", "empty": b""}[how])
    refuse("folder", untouched, r"train/b/2.png cannot be read.*: replace it or remove it")


def test_image_that_would_lose_depth(untouched):
    make_folder(untouched)
    Image.fromarray(np.full((5, 6), 40_000, dtype=np.uint16)).save(untouched / "train" / "a" / "deep.png")
    refuse("folder", untouched, "deep.png has pixels of type I;16: convert it to 8-bit gray or RGB")


@pytest.mark.parametrize("missing", ["train", "test", "both", "classes"])
def test_missing_folder(missing, untouched):
    make_folder(untouched)
    for part in ("train", "test"):
        if missing in (part, "both", "classes"):
            shutil.rmtree(untouched / part)
        if missing == "classes":
            (untouched / part).mkdir()
    refuse("folder", untouched, r"(no folder|no class folders).*: put the images into .*/<class>/")


def failing_write(code):
    @contextmanager
    def atomic_path(path):
        raise UserError(f"trouble with {path}") from OSError(code, os.strerror(code))
        yield

    return atomic_path


def test_no_space_for_decoded_images(untouched, monkeypatch):
    make_folder(untouched)
    monkeypatch.setattr(folder, "atomic_path", failing_write(errno.ENOSPC))
    refuse("folder", untouched, "trouble with")


def test_folder_that_cannot_be_written_is_still_read(tmp_path, monkeypatch):
    make_folder(tmp_path)
    monkeypatch.setattr(folder, "atomic_path", failing_write(errno.EROFS))
    assert len(load_dataset("folder", tmp_path, progress=False).train) == 6


# ---------------------------------------------------------------------------------------------------------------------
# sets with a name


def test_unknown_name(tmp_path):
    with pytest.raises(
        UserError, match="unknown data set 'mnist': choose one of cifar10, cifar100, svhn, fashion-mnist"
    ):
        load_dataset("mnist", tmp_path)


def test_cifar10_as_folder(tmp_path):
    make_folder(tmp_path, classes=CIFAR10, suffix="webp", size=(32, 32))
    with pytest.warns(UserWarning, match=r"\(30, 10\) training and test images of cifar10 instead of \(50000, 10000\)"):
        dataset = load_dataset("cifar10", tmp_path, progress=False)
    assert (dataset.name, dataset.classes, dataset.train.name) == ("cifar10", CIFAR10, "cifar10-train")
    assert dataset.train.images.shape == (30, 32, 32, 3)


def test_folder_that_is_not_the_named_set(untouched):
    make_folder(untouched, classes=CIFAR10)
    refuse("cifar10", untouched, r"are not cifar10 .*\(5, 6, 3, 10\), not \(32, 32, 3, 10\).* data set 'folder'")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "folder"])
@pytest.mark.parametrize("download", [False, True])
def test_missing_set(name, download, untouched, offline, monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda _: True)  # scipy, for svhn
    start = time.perf_counter()
    refuse(name, untouched, f"{name} is not in {untouched}.*put .* there", download=download)
    assert time.perf_counter() - start < 5
    assert not list(untouched.iterdir())


def write_cifar(root, labels="labels", per_file=4):
    """A CIFAR-10 of a few images, with torchvision's file names; returns the training images as NHWC."""
    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6 * per_file, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        part = pixels[i * per_file : (i + 1) * per_file].reshape(per_file, -1)
        (base / name).write_bytes(pickle.dumps({"data": part, labels: [i % 10] * per_file}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10}))
    return pixels[: 5 * per_file].transpose(0, 2, 3, 1)


@pytest.fixture
def any_checksum(monkeypatch):
    """torchvision takes any file that exists for a sound one."""
    for module in ("cifar", "svhn", "utils"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: os.path.isfile(path)
        )


def test_cifar10_from_torchvision_files(tmp_path, any_checksum):
    images = write_cifar(tmp_path)
    dataset = load_dataset("cifar10", tmp_path)
    assert np.array_equal(dataset.train.images, images) and dataset.train.images.is_contiguous()
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert dataset.classes == CIFAR10 and dataset.test.labels.tolist() == [5] * 4


def test_cifar10_from_the_archive(tmp_path, any_checksum, offline):
    images = write_cifar(tmp_path / "elsewhere")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "elsewhere" / "cifar-10-batches-py", "cifar-10-batches-py")
    before = snapshot(tmp_path)
    assert np.array_equal(load_dataset("cifar10", tmp_path).train.images, images)
    assert before.items() <= snapshot(tmp_path).items() and not list(tmp_path.glob(".fetching-*"))


def test_half_downloaded_cifar10(untouched, offline):
    write_cifar(untouched)  # the checksums are not those of CIFAR-10
    refuse("cifar10", untouched, "is incomplete or damaged .*: delete cifar-10-batches-py there and run again")
    shutil.rmtree(untouched / "cifar-10-batches-py")
    (untouched / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b half of it")
    refuse("cifar10", untouched, "cifar-10-python.tar.gz is incomplete or damaged: delete it and run again")


def test_downloaded_cifar10_appears_whole_or_not_at_all(tmp_path, any_checksum, monkeypatch):
    errors = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None]
    images = []

    def download(self):
        images.append(write_cifar(Path(self.root)))
        if error := errors.pop(0):
            raise error

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    refuse("cifar10", tmp_path, "no space left for cifar10")
    assert not list(tmp_path.iterdir())
    assert np.array_equal(load_dataset("cifar10", tmp_path).train.images, images[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def test_cifar10_that_another_process_was_quicker_to_download(tmp_path, any_checksum, monkeypatch):
    def download(self):
        write_cifar(Path(self.root))
        write_cifar(tmp_path)

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    assert len(load_dataset("cifar10", tmp_path).train) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


@pytest.fixture
def svhn(tmp_path, any_checksum, monkeypatch):
    """SVHN of 11 images, read by a stand-in for scipy; returns the images as NHWC."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    labels = np.array([10, *range(1, 10), 10], dtype=np.uint8)[:, None]  # SVHN calls the digit zero 10
    scipy, reader = ModuleType("scipy"), ModuleType("scipy.io")
    scipy.io = reader
    reader.loadmat = lambda path: {"X": pixels.transpose(1, 2, 3, 0), "y": labels}
    monkeypatch.setitem(sys.modules, "scipy", scipy)
    monkeypatch.setitem(sys.modules, "scipy.io", reader)
    monkeypatch.setattr(load, "find_spec", lambda _: True)
    for part in ("train", "test"):
        (tmp_path / f"{part}_32x32.mat").touch()
    return pixels


def test_svhn(svhn, tmp_path):
    dataset = load_dataset("svhn", tmp_path)
    assert np.array_equal(dataset.train.images, svhn) and dataset.train.images.is_contiguous()
    assert dataset.train.labels.tolist() == [*range(10), 0] and dataset.train.labels.dtype == torch.int64
    assert not dataset.flip


def test_half_of_svhn(svhn, untouched):
    (untouched / "test_32x32.mat").unlink()
    refuse("svhn", untouched, "svhn in .* is incomplete or damaged .*: delete train_32x32.mat and test_32x32.mat there")


def test_svhn_without_scipy(untouched, monkeypatch):
    monkeypatch.setattr(load, "find_spec", lambda _: None)
    refuse("svhn", untouched, "svhn cannot be read without scipy: pip install scipy")


def write_fashion_mnist(root, n=20, compressed=True):
    root.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(n, dtype=np.uint8) % 10)):
            data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            name = f"{part}-{kind}-ubyte"
            (root / (name + ".gz" * compressed)).write_bytes(gzip.compress(data) if compressed else data)
    return images[..., None]


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_fashion_mnist(place, compressed, tmp_path):
    images = write_fashion_mnist(tmp_path / place, compressed=compressed)
    dataset = load_dataset("fashion-mnist", tmp_path)
    assert np.array_equal(dataset.train.images, images)
    assert dataset.test.labels.tolist() == [i % 10 for i in range(20)] and dataset.classes[9] == "Ankle boot"


@pytest.mark.parametrize("how", ["missing", "cut", "altered", "other"])
def test_damaged_fashion_mnist(how, untouched):
    write_fashion_mnist(untouched)
    victim = untouched / "train-images-idx3-ubyte.gz"
    data = bytearray(victim.read_bytes())
    if how == "missing":
        victim.unlink()
    elif how == "other":
        victim.write_bytes((untouched / "train-labels-idx1-ubyte.gz").read_bytes())
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data if how == "altered" else data[: len(data) // 2])
    refuse("fashion-mnist", untouched, "fashion-mnist in .* is incomplete or damaged .*: delete .* and run again")


@pytest.mark.skipif(
    not table.DEBIAN_FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_from_debian(tmp_path):
    dataset = load_dataset("fashion-mnist", tmp_path, download=False)
    assert dataset.train.images.shape == (60_000, 28, 28, 1) and len(dataset.test) == 10_000
    assert dataset.train.labels.bincount().tolist() == [6000] * 10
    assert dataset.train.cache == tmp_path / folder.CACHE


# ---------------------------------------------------------------------------------------------------------------------
# parts of a split


def numbered(n=1000, classes=7):
    """Each image holds its own number, so that its place can be told."""
    images = torch.arange(n, dtype=torch.int32).view(torch.uint8).reshape(n, 2, 2, 1)
    return Split(images, torch.arange(n) % classes, "numbered")


def numbers(split):
    return split.images.flatten(1).contiguous().view(torch.int32).flatten().tolist()


def test_validation_is_fixed_and_spread_over_the_classes():
    split = numbered()
    train, val = take_validation(split, 140)
    assert len(val) == 140 and sorted(numbers(train) + numbers(val)) == list(range(1000))
    assert numbers(train) == sorted(numbers(train)) and numbers(val) == sorted(numbers(val))
    assert all(i % 7 == label for i, label in zip(numbers(val), val.labels.tolist(), strict=True))
    assert set(val.labels.bincount().tolist()) <= {19, 20, 21}
    torch.manual_seed(1)
    np.random.seed(1)
    assert numbers(take_validation(split, 140)[1]) == numbers(val)
    assert numbers(take_validation(split, 140, seed=1)[1]) != numbers(val)
    assert numbers(take_validation(split, 3)[1]) == [145, 501, 906]  # for good: else old results are not comparable


def test_validation_keeps_the_classes_proportions():
    labels = torch.cat([torch.zeros(900), torch.ones(100)]).long()
    split = Split(torch.zeros(1000, 2, 2, 1, dtype=torch.uint8), labels)
    assert take_validation(split, 100)[1].labels.bincount().tolist() == [90, 10]


def test_subset_is_fixed_and_nested():
    split = numbered()
    small, large = subset(split, 70), subset(split, 300)
    assert len(small) == 70 and set(numbers(small)) < set(numbers(large))
    assert set(small.labels.bincount().tolist()) <= {9, 10, 11}
    assert numbers(subset(split, 1000)) == list(range(1000))


@pytest.mark.parametrize("size", [-1, 1000, 2000])
def test_validation_that_does_not_fit(size):
    with pytest.raises(UserError, match="choose a smaller one"):
        take_validation(numbered(), size)


@pytest.mark.parametrize("n", [0, 1001])
def test_subset_that_does_not_fit(n):
    with pytest.raises(UserError, match="choose a number from 1 to 1000"):
        subset(numbered(), n)


def test_fingerprint_sees_images_labels_and_shape():
    split = numbered()
    images, labels = split.images.clone(), split.labels.clone()
    images[5, 1, 1, 0] ^= 1
    labels[5] += 1
    splits = [
        split,
        Split(images, split.labels),
        Split(split.images, labels),
        Split(split.images.mT.reshape(1000, 1, 4, 1), split.labels),
    ]
    assert len({fingerprint(s) for s in splits}) == 4
    assert fingerprint(Split(split.images.clone(), split.labels, "other name")) == fingerprint(split)
