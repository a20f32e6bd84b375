"""Known data sets from their files, and what is said when these are not in order."""

import errno
import gzip
import hashlib
import os
import pickle
import shutil
import struct
import sys
import tarfile
import time
import tracemalloc
import urllib.error
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from image_folders import make_folder, refuse, snapshot

from apart_fast.errors import UserError
from apart_fast.loaders import load_dataset
from apart_fast.loaders.datasets import folder, load, table

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


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


@pytest.mark.filterwarnings("ignore:.*instead of")
@pytest.mark.parametrize("spell", [str, str.upper, lambda name: name.lower().replace(" ", "_").replace("-", " ")])
def test_classes_of_a_known_set_keep_their_order(spell, tmp_path):
    """By the alphabet an ankle boot would be 0."""
    names = [spell(name.replace("/", "-")) for name in table.KNOWN["fashion-mnist"].names]
    pixels = make_folder(tmp_path, classes=names, size=(28, 28), mode="L")
    dataset = load_dataset("fashion-mnist", tmp_path, progress=False)
    assert dataset.classes == torchvision.datasets.FashionMNIST.classes
    assert dataset.train.labels.tolist() == [i // 3 for i in range(30)] and dataset.test.labels.tolist() == [*range(10)]
    for split, part in ((dataset.train, "train"), (dataset.test, "test")):
        gray = [np.asarray(PIL.Image.open(path)) for path in pixels if path.parts[-3] == part]
        assert np.array_equal(split.images[..., 0], gray)


@pytest.mark.filterwarnings("ignore:.*instead of")
@pytest.mark.parametrize("name", ["svhn", "fashion-mnist", "cifar100"])
def test_numbers_name_the_classes_of_a_known_set(name, tmp_path):
    known = table.KNOWN[name]
    numbers = [str(i) for i in range(known.classes)]
    make_folder(tmp_path, classes=numbers, size=known.shape[1::-1], mode="L" if known.shape[2] == 1 else "RGB")
    dataset = load_dataset(name, tmp_path, progress=False)
    assert dataset.classes == list(known.names) and dataset.test.labels.tolist() == list(range(known.classes))
    assert torch.equal(
        dataset.test.images[9].squeeze(), torch.from_numpy(np.array(PIL.Image.open(tmp_path / "test/9/0.png")))
    )


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("cifar10", {"airplane": "aeroplane"}, "'aeroplane' is none of them, and 'airplane' is missing"),
        ("cifar10", {"truck": None}, "'truck' is missing"),
        ("cifar10", {"": "zebra"}, "'zebra' is none of them"),
        ("svhn", {"0": "10"}, "'10' is none of them, and '0' is missing"),
    ],
)
def test_other_classes_than_those_of_the_known_set(name, change, line, untouched):
    classes = [change.get(c, c) for c in (*table.KNOWN[name].names, "") if change.get(c, c)]
    make_folder(untouched, classes=classes, size=(32, 32))
    refuse(
        name, untouched, rf"train are not those of {name} \({line}\): rename them, or load them as data set 'folder'"
    )


def test_what_lies_in_the_folder_wins_over_the_system(tmp_path, monkeypatch):
    own, system = tmp_path / "own", tmp_path / "system"
    write_fashion_mnist(system)
    known = replace(table.KNOWN["fashion-mnist"], places=("FashionMNIST/raw", system))
    monkeypatch.setitem(table.KNOWN, "fashion-mnist", known)
    make_folder(own, classes=[str(i) for i in range(10)], size=(28, 28), mode="L")
    with pytest.warns(UserWarning, match=r"\(30, 10\) training and test images"):
        dataset = load_dataset("fashion-mnist", own, progress=False)
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    shutil.rmtree(own / "train")  # what is not whole is said, not replaced
    refuse("fashion-mnist", own, "there is no folder .*own/train")
    write_fashion_mnist(own, n=30)
    with pytest.warns(UserWarning, match="is read from its files in .*own, not from train/ and test/ in .*own"):
        assert len(load_dataset("fashion-mnist", own).train) == 30
    with pytest.warns(UserWarning, match="differ"):
        assert len(load_dataset("fashion-mnist", tmp_path / "empty").train) == 20


def test_files_that_are_not_the_published_ones(tmp_path):
    write_fashion_mnist(tmp_path)
    said = r"\(20 training and 20 test images\): train-images-idx3-ubyte and .* differ from the published files"
    with pytest.warns(UserWarning, match=said):
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize("name", [name for name, known in table.KNOWN.items() if known.reader != "idx"])
def test_files_that_must_be_the_published_ones(name, untouched, offline, monkeypatch):
    """Each of them is compared with its published sum before it is opened: pickles run what is in them."""
    monkeypatch.setattr(load, "find_spec", lambda _: True)  # scipy, for svhn
    known = table.KNOWN[name]
    maker = getattr(torchvision.datasets, known.torchvision)
    lists = [*getattr(maker, "train_list", []), *getattr(maker, "test_list", [])]
    inner = [Path(known.files[0], file) for file, *_ in lists] or [Path(file) for file in known.files]
    for path in inner:
        (untouched / path).parent.mkdir(exist_ok=True)
        (untouched / path).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    monkeypatch.chdir(untouched)
    refuse(name, untouched, f"{name} in .* is incomplete or damaged .*: delete {' and '.join(known.files)} there")
    assert not (untouched / "ran").exists()


def test_published_archives_are_known_by_their_sum(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path)
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in tmp_path.glob("*.gz")]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", sums)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset("fashion-mnist", tmp_path)


@pytest.mark.parametrize("how", ["bomb", "claims", "longer", "shape"])
def test_idx_files_that_are_not_what_they_say(how, untouched):
    write_fashion_mnist(untouched)
    n, rest = {"bomb": (20, 2**28), "claims": (2**32 - 1, 0), "longer": (20, 1), "shape": (20, 0)}[how]
    size = 14 if how == "shape" else 28
    data = struct.pack(">BBBB3I", 0, 0, 8, 3, n, size, size) + bytes(20 * size * size)
    with gzip.open(untouched / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(data)
        for _ in range(rest >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(rest % (1 << 20)))
    tracemalloc.start()
    refuse(
        "fashion-mnist", untouched, "(is longer than it says|says that it holds .*expected .28, 28. each, and at most)"
    )
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_half_of_a_download_that_was_killed_is_removed(tmp_path, any_checksum):
    images = write_cifar(tmp_path)
    (tmp_path / ".apart_fast.fetching-abcd").mkdir()
    (tmp_path / ".apart_fast.fetching-abcd" / "half.tar.gz").touch()
    assert np.array_equal(load_dataset("cifar10", tmp_path).train.images, images)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def test_folder_that_is_not_the_named_set(untouched):
    make_folder(untouched, classes=CIFAR10)
    refuse("cifar10", untouched, r"are not cifar10 .*\(5, 6, 3, 10\), not \(32, 32, 3, 10\).* data set 'folder'")


@pytest.mark.parametrize("name", table.KNOWN)
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
    assert before.items() <= snapshot(tmp_path).items() and not list(tmp_path.glob(".apart_fast.fetching-*"))


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
