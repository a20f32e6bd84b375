"""Folders of images: train/<class>/* and test/<class>/*, decoded once and kept as one file."""

import errno
import hashlib
import os
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from apart_fast.errors import UserError
from apart_fast.files import atomic_path, remove_abandoned
from apart_fast.loaders.datasets.classes import OtherClasses, match_classes
from apart_fast.loaders.datasets.listing import File, list_pictures, shown
from apart_fast.loaders.datasets.picture import Picture, read_picture
from apart_fast.loaders.datasets.splits import Dataset, Split

CACHE = ".apart_fast"  # files derived from the data lie in this folder beside it
_PARTS = ("train", "test")
_READING = b"2"  # changes whenever the same files are read as other pixels
_UNUSED = ("val", "valid", "validation", "dev", "extra")  # folders that others put beside train and test


class _Images(NamedTuple):
    """Decoded pictures: uint8 [N, H, W, C], and a line for each kind of thing that was done to some of them."""

    pixels: np.ndarray
    notes: list[str]


def load_folder(
    root: Path, *, name: str = "folder", flip: bool = True, progress: bool = True, names: Sequence[str] | None = None
) -> Dataset:
    """Load root/train/<class>/* and root/test/<class>/* (pictures of one size; see `list_pictures`, `read_picture`).

    Classes are numbered by name, images are sorted by name. The images have one channel if all of them are gray,
    otherwise three. Decoded images are kept in `root/.apart_fast` (if it can be written) and used again as long as
    names, sizes and times of the files stay the same.

    Args:
        names: of the classes of a known set, in the order of its labels: the folders are matched with them, or named
            by the labels themselves.

    Raises:
        UserError: a folder is missing or empty, train and test have different classes or others than `names`,
            something is neither class nor picture, an image cannot be read or has another size than the others, or no
            space is left.
    """
    found = {part: list_pictures(root / part) for part in _PARTS}
    if names is None:
        classes = [_printable(label) for label in found["train"]]
        files = {part: list(labels.values()) for part, labels in found.items()}
        if found["train"].keys() != found["test"].keys():
            odd = sorted(found["train"].keys() ^ found["test"].keys())[0]
            raise UserError(
                f"class {_printable(odd)!r} is in only one of train and test of {shown(root)}: "
                "both need the same classes"
            )
    else:
        classes = list(names)
        files = {part: _in_order(labels, names, root / part, name) for part, labels in found.items()}
    _say_what_is_odd(root)
    flat = [file for part in _PARTS for label in files[part] for file in label]
    labels = {
        part: np.repeat(np.arange(len(classes), dtype=np.int64), [len(label) for label in files[part]])
        for part in _PARTS
    }

    remove_abandoned(root / CACHE)
    cache = root / CACHE / f"images-{_digest(root, flat)}.npz"
    images = _read_cache(cache, len(flat))
    if images is None:
        images = _decode(flat, progress)
        _write_cache(cache, images)
    for note in images.notes:
        warnings.warn(f"{shown(root)}: {note}", stacklevel=2)
    cut = len(labels["train"])
    train, test = (
        Split(torch.from_numpy(a), torch.from_numpy(labels[part]), f"{name}-{part}", root / CACHE)
        for part, a in (("train", images.pixels[:cut]), ("test", images.pixels[cut:]))
    )
    return Dataset(name, train, test, classes, flip)


def _in_order(found: dict[str, list[File]], names: Sequence[str], folder: Path, name: str) -> list[list[File]]:
    """The pictures of each class of a known set, in the order of its labels."""
    labels = list(found)
    try:
        places = match_classes([_printable(label) for label in labels], names, numbers=True)
    except OtherClasses as error:
        raise UserError(
            f"the class folders in {shown(folder)} are not those of {name} ({error}): rename them, "
            "or load them as data set 'folder'"
        ) from error
    return [found[labels[places.index(place)]] for place in range(len(names))]


def _printable(name: str) -> str:
    """A class name that can be written anywhere, also where the folder's is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _say_what_is_odd(root: Path) -> None:
    """A line for what is allowed and may not be meant."""
    if os.path.samefile(root / "train", root / "test"):
        warnings.warn(f"train and test of {shown(root)} are the same folder: testing on training images", stacklevel=3)
    unused = [part for part in _UNUSED if (root / part).is_dir()]
    if unused:
        warnings.warn(
            f"not used: {' and '.join(unused)} in {shown(root)} (validation images are taken from train)",
            stacklevel=3,
        )


def _digest(root: Path, files: list[File]) -> str:
    """Names, sizes and times of the files: cheap, and changes when an image does."""
    digest = hashlib.blake2b(digest_size=16, person=_READING)
    for file in files:
        digest.update(os.fsencode(os.path.relpath(file.path, root)))
        digest.update(f"\0{file.status.st_size}\0{file.status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode(files: list[File], progress: bool) -> _Images:
    """All pictures; those of gray ones have one channel."""
    # one thread: small images cost mostly Python's own time, and threads made it half as fast
    pixels: np.ndarray | None = None
    color = False
    notes: Counter[str] = Counter()
    for i, file in enumerate(
        tqdm(files, "decoding images", unit="img", mininterval=0.5, disable=None if progress else True)
    ):
        picture = _decode_one(file.path)
        if pixels is None:
            pixels = _room(len(files), picture.pixels.shape)
        if picture.pixels.shape != pixels.shape[1:]:
            (h, w), (h0, w0) = picture.pixels.shape[:2], pixels.shape[1:3]
            raise UserError(
                f"{shown(file.path)} is {w}x{h} but {shown(files[0].path)} is {w0}x{h0}: resize the images to one size"
            )
        pixels[i] = picture.pixels
        color |= picture.colored
        notes.update(picture.notes)
    assert pixels is not None  # there is at least one file
    lines = [f"{count} of {len(files)} pictures {note}" for note, count in sorted(notes.items())]
    return _Images(pixels if color else np.ascontiguousarray(pixels[..., :1]), lines)


def _room(count: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty((count, *shape), dtype=np.uint8)
    except MemoryError as error:
        raise UserError(
            f"{count} images of {shape[1]}x{shape[0]} do not fit into the memory: resize them, or use fewer"
        ) from error


def _decode_one(path: str) -> Picture:
    return read_picture(path)


def _read_cache(path: Path, count: int) -> _Images | None:
    """What `_write_cache` wrote for `count` pictures; None if there is nothing that fits them."""
    try:
        with np.load(path) as arrays:  # a zip file: its checksum is verified while reading
            pixels, notes = arrays["images"], arrays["notes"]
    except (OSError, KeyError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        return None  # missing or damaged: the images themselves are still there
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != count or pixels.shape[3] not in (1, 3):
        return None
    if notes.dtype.kind != "U" or notes.ndim != 1 or not all(pixels.shape):
        return None
    return _Images(np.ascontiguousarray(pixels), notes.tolist())


def _write_cache(path: Path, images: _Images) -> None:
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, notes=np.array(images.notes, dtype=np.str_), images=images.pixels)
    except UserError as error:
        # data in a folder that cannot be written is common and costs only the time to decode it again
        if getattr(error.__cause__, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
