"""Data that cannot be trained on."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from faults.bad.site import EITHER, REFUSED, Input, Site, Words, loop, pipe
from faults.contents import difference
from faults.workshop import draw
from PIL import Image

RED = Image.new("RGB", (8, 8), (200, 30, 30))
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data or zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def _frames(kind: str) -> bytes:
    others = [Image.new("RGB", (8, 8), (20, 200, i)) for i in range(3)]
    return saved(RED, kind, save_all=True, append_images=others)


GOOD = saved(RED)
PICTURES: dict[str, Callable[[], tuple[str, bytes]]] = {  # name and content of a picture beside good ones
    "nothing": lambda: ("x.png", b""),
    "text": lambda: ("x.png", b"not a picture"),
    "half a PNG": lambda: ("x.png", GOOD[: len(GOOD) // 2]),
    "a PNG without its end": lambda: ("x.png", GOOD[:-6]),
    "a PNG with a flipped bit": lambda: ("x.png", GOOD[:45] + bytes([GOOD[45] ^ 16]) + GOOD[46:]),
    "half a JPEG": lambda: ("x.jpg", saved(RED, "JPEG")[:200]),
    "a JPEG of zeros": lambda: ("x.jpg", saved(RED, "JPEG")[:20] + bytes(500)),
    "a PNG that says 12,000 x 12,000": lambda: ("x.png", png(12_000, 12_000)),
    "a PNG that says 2^31 - 1": lambda: ("x.png", png(2**31 - 1, 2**31 - 1)),
    "a PNG of no size": lambda: ("x.png", png(0, 0)),
    "a real one of 12,000 x 12,000": lambda: ("x.png", saved(Image.new("L", (12_000, 12_000)))),
    "text that unpacks to 200 MB": lambda: (
        "x.png",
        GOOD[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**8))) + GOOD[33:],
    ),
    "a profile that is none": lambda: ("x.png", saved(RED, icc_profile=b"no profile")),
    "another size": lambda: ("x.png", saved(Image.new("RGB", (9, 8)))),
    "one pixel": lambda: ("x.png", saved(Image.new("RGB", (1, 1)))),
    "16 bits gray": lambda: ("x.png", saved(Image.fromarray(np.full((8, 8), 3000, np.uint16)))),
    "16 bits RGB": lambda: ("x.png", png(8, 8, 16, 2, zlib.compress((b"\0" + bytes(48)) * 8))),
    "32 bits": lambda: ("x.tif", saved(Image.fromarray(np.ones((8, 8), np.int32)), "TIFF")),
    "floats": lambda: ("x.tif", saved(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")),
    "CMYK": lambda: ("x.jpg", saved(Image.new("CMYK", (8, 8)), "JPEG")),
    "LAB": lambda: ("x.tif", saved(Image.new("LAB", (8, 8)), "TIFF")),
    "an animated GIF": lambda: ("x.gif", _frames("GIF")),
    "an animated WebP": lambda: ("x.webp", _frames("WEBP")),
    "an animated PNG": lambda: ("x.png", _frames("PNG")),
    "a TIFF of pages": lambda: ("x.tif", _frames("TIFF")),
    "an SVG": lambda: ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "a PDF": lambda: ("x.pdf", b"%PDF-1.4"),
    "an EPS called png": lambda: ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
    "a text file": lambda: ("notes.txt", b"mine"),
    "an archive": lambda: ("x.zip", b"PK\x03\x04"),
    "a name of control characters": lambda: ("x\n\x1b[31m.png", b"no picture"),
    "a name that is not UTF-8": lambda: ("\udcff.png", b"no picture"),
    "a name of 250 letters": lambda: ("n" * 250 + ".png", b"no picture"),
    "a broken EXIF block": lambda: ("x.jpg", saved(RED, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")),
}
ALLOWED = {"a profile that is none", "text that unpacks to 200 MB", "a broken EXIF block"}  # may be read, with a note


def _picture(make: Callable[[], tuple[str, bytes]], site: Site) -> Words:
    name, content = make()
    data = site.pictures()
    (data / "train" / "b" / name).write_bytes(content)
    return site.train(data=data)


def _changed(change: Callable[[Path], object], site: Site) -> Words:
    data = site.pictures()
    change(data)
    return site.train(data=data)


def _without(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()


def _replaced(folder: Path, make: Callable[[Path], object]) -> None:
    _without(folder)
    make(folder)


FOLDERS: dict[str, Callable[[Path], object]] = {  # what is changed in a good folder of images
    "no test": lambda d: _without(d / "test"),
    "no train": lambda d: _without(d / "train"),
    "no images": lambda d: [file.unlink() for file in d.rglob("*.png")],
    "test without images": lambda d: [file.unlink() for file in d.glob("test/*/*")],
    "train is a file": lambda d: _replaced(d / "train", lambda p: p.write_text("x")),
    "train is a loop of links": lambda d: _replaced(d / "train", loop),
    "train is a pipe": lambda d: _replaced(d / "train", pipe),
    "train leads nowhere": lambda d: _replaced(d / "train", lambda p: p.symlink_to("nowhere")),
    "an empty class": lambda d: [(d / part / "d").mkdir() for part in ("train", "test")],
    "a class in train only": lambda d: os.rename(d / "test" / "a", d / "test" / "z"),
    "one class": lambda d: [_without(d / part / name) for part in ("train", "test") for name in "bc"],
    "a class that is a file": lambda d: (d / "train" / "d").write_text("x"),
    "a class that is a loop of links": lambda d: loop(d / "train" / "d"),
    "a class that leads nowhere": lambda d: (d / "train" / "d").symlink_to("nowhere"),
    "a class that is a pipe": lambda d: pipe(d / "train" / "d"),
    "a folder in a class": lambda d: (d / "train" / "a" / "more").mkdir(),
    "a pipe as a picture": lambda d: pipe(d / "train" / "a" / "x.png"),
    "a link that leads nowhere as a picture": lambda d: (d / "train" / "a" / "x.png").symlink_to("nowhere.png"),
    "a loop of links as a picture": lambda d: loop(d / "train" / "a" / "x.png"),
    "an endless device as a picture": lambda d: (d / "train" / "a" / "x.png").symlink_to("/dev/zero"),
    "a link to its own folder": lambda d: (d / "train" / "a" / "up").symlink_to(".."),
    "images of 4 x 4": lambda d: _replaced(d, lambda p: draw(p, 96, 33, side=4)),
    "two images": lambda d: _replaced(d, lambda p: draw(p, 3, 3)),
}
CACHED: dict[str, Callable[[Path], object]] = {  # what lies where decoded images are kept
    "cache: a file": lambda d: (d / ".apart_fast").write_text("x"),
    "cache: a loop of links": lambda d: loop(d / ".apart_fast"),
    "cache: leads nowhere": lambda d: (d / ".apart_fast").symlink_to("nowhere/deep"),
}


def _cache(content: Callable[[Path, np.ndarray], object], site: Site) -> Words:
    """A good folder whose file of decoded images is replaced."""
    data = site.pictures()
    site.shop.launcher.run("train.py", site.train(data=data, out=site.folder / "first")[1:], site.folder)
    (file,) = (data / ".apart_fast").glob("images-*[!n]")
    known = np.load(file)
    file.unlink()
    content(file, known)
    return site.train(data=data)


def _as_first(site: Site) -> str | None:
    """The run on the replaced file must be that on the pictures."""
    first, second = (site.shop.digest(site.folder / name / "last.pt") for name in ("first", "new"))
    differs = difference(first, second)
    return differs and f"other images were trained on: last.pt, {differs}"


def _pickled(file: Path, known: np.ndarray) -> None:
    np.save(file, np.array([Trap()] * len(known), dtype=object), allow_pickle=True)


DECODED: dict[str, Callable[[Path, np.ndarray], object]] = {
    "decoded images: five too few": lambda file, known: np.save(file, known[:-5]),
    "decoded images: floats": lambda file, known: np.save(file, known.astype(np.float32)),
    "decoded images: others": lambda file, known: np.save(file, 255 - known),
    "decoded images: pickled": _pickled,
    "decoded images: an archive": lambda file, known: np.savez(file.open("wb"), known),
    "decoded images: text": lambda file, known: file.write_text("x"),
    "decoded images: a folder": lambda file, known: file.mkdir(),
    "decoded images: a pipe": lambda file, known: pipe(file),
    "decoded images: nowhere": lambda file, known: file.symlink_to("nowhere"),
    "decoded images: without their note": lambda file, known: [
        *(note.unlink() for note in file.parent.glob("*.json")),
        np.save(file, 255 - known),
    ],
}


class Trap:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch SPRUNG; echo xyzzy-sprung >> SPRUNG",)


def idx(shape: tuple[int, ...], data: bytes, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + data


def _mnist(change: Callable[[dict[str, bytes]], object], site: Site) -> Words:
    files = {
        IDX[0]: idx((60, 28, 28), bytes(60 * 784)),
        IDX[1]: idx((60,), bytes(range(10)) * 6),
        IDX[2]: idx((20, 28, 28), bytes(20 * 784)),
        IDX[3]: idx((20,), bytes(range(10)) * 2),
    }
    change(files)
    data = site.folder / "mnist"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    return site.train("--dataset", "fashion-mnist", "--no-download", data=data)


def _packed(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files.pop(name)
        files[f"{name}.gz"] = gzip.compress(content)

    return change


MNIST: dict[str, Callable[[dict[str, bytes]], object]] = {
    "idx: a file is missing": lambda f: f.pop(IDX[1]),
    "idx: another magic number": lambda f: f.update({IDX[0]: b"\1\2\3\4" + f[IDX[0]][4:]}),
    "idx: floats": lambda f: f.update({IDX[0]: idx((60, 28, 28), bytes(60 * 784), kind=13)}),
    "idx: cut": lambda f: f.update({IDX[0]: f[IDX[0]][:-9]}),
    "idx: longer": lambda f: f.update({IDX[0]: f[IDX[0]] + b"123"}),
    "idx: nothing": lambda f: f.update({IDX[0]: b""}),
    "idx: a head alone": lambda f: f.update({IDX[2]: f[IDX[2]][:6]}),
    "idx: a label of 200": lambda f: f.update({IDX[1]: idx((60,), bytes([200] * 60))}),
    "idx: fewer labels": lambda f: f.update({IDX[1]: idx((59,), bytes(59))}),
    "idx: another size": lambda f: f.update({IDX[0]: idx((60, 27, 28), bytes(60 * 27 * 28))}),
    "idx: no images": lambda f: f.update({IDX[2]: idx((0, 28, 28), b""), IDX[3]: idx((0,), b"")}),
    "idx: says 2^32 - 1 images": lambda f: f.update({IDX[0]: idx((2**32 - 1, 28, 28), bytes(99))}),
    "idx: a bomb": _packed(IDX[0], idx((60, 28, 28), bytes(300_000_000))),
    "idx: packed and cut": lambda f: f.update({IDX[0] + ".gz": gzip.compress(f.pop(IDX[0]))[:-20]}),
    "idx: packed text": lambda f: f.update({IDX[0] + ".gz": b"text", IDX[0] + "x": f.pop(IDX[0])}),
}


def _cifar(content: Callable[[], dict[str, bytes]], site: Site) -> Words:
    data = site.folder / "cifar"
    for name, data_ in content().items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(data_)
    return site.train(
        "--dataset", "svhn" if any(".mat" in n for n in content()) else "cifar10", "--no-download", data=data
    )


def _archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return file.getvalue()


BATCH = "cifar-10-batches-py"
KNOWN: dict[str, Callable[[], dict[str, bytes]]] = {
    "cifar: batches of text": lambda: {f"{BATCH}/data_batch_{i}": b"x" for i in range(1, 6)},
    "cifar: pickles that act": lambda: {f"{BATCH}/{n}": pickle.dumps(Trap()) for n in ("data_batch_1", "test_batch")},
    "cifar: a folder without files": lambda: {f"{BATCH}/readme.html": b""},
    "cifar: a file as its folder": lambda: {BATCH: b"x"},
    "cifar: half an archive": lambda: {"cifar-10-python.tar.gz": b"\x1f\x8b\x08\x00"},
    "cifar: an archive that climbs": lambda: {"cifar-10-python.tar.gz": _archive()},
    "svhn: text": lambda: {"train_32x32.mat": b"x", "test_32x32.mat": b"x"},
    "svhn: one of two files": lambda: {"train_32x32.mat": b"MATLAB 5.0 MAT-file"},
    "svhn: nothing": lambda: {"train_32x32.mat": b"", "test_32x32.mat": b""},
}


def _judged(change: Callable[[Path], object], site: Site) -> Words:
    data = site.pictures()
    change(data)
    return site.judge(data=data)


OTHER: dict[str, Callable[[Path], object]] = {  # data on which a network is judged that knows others
    "judged on a class more": lambda d: [_one_picture(d / p / "d") for p in ("train", "test")],
    "judged on other names": lambda d: [os.rename(d / p / "a", d / p / "zebra") for p in ("train", "test")],
    "judged on other sizes": lambda d: _replaced(d, lambda p: draw(p, 9, 9, side=16)),
}


def _one_picture(folder: Path) -> None:
    folder.mkdir()
    (folder / "1.png").write_bytes(GOOD)


def inputs() -> Iterator[Input]:
    for name, make in PICTURES.items():
        must = EITHER if name in ALLOWED else REFUSED
        yield Input(f"a picture: {name}", "pictures", partial(_picture, make), must)
    for name, change in FOLDERS.items():
        yield Input(f"a folder: {name}", "folders", partial(_changed, change))
    for name, change in CACHED.items():
        yield Input(name, "caches", partial(_changed, change), EITHER)
    for name, content in DECODED.items():
        yield Input(name, "caches", partial(_cache, content), EITHER, secret="xyzzy-sprung", taken=_as_first)
    for name, files in MNIST.items():
        yield Input(name, "known sets", partial(_mnist, files))
    for name, known in KNOWN.items():
        yield Input(name, "known sets", partial(_cifar, known), secret="xyzzy-sprung")
    for name, change in OTHER.items():
        yield Input(name, "folders", partial(_judged, change))
