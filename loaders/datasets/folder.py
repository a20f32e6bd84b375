"""Folders of images: train/<class>/* and test/<class>/*, decoded once into one file, which is mapped into memory."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from apart_fast.errors import UserError
from apart_fast.loaders.datasets import derived
from apart_fast.loaders.datasets.classes import OtherClasses, match_classes
from apart_fast.loaders.datasets.converting import PARTS, convert, key_of, pictures
from apart_fast.loaders.datasets.listing import Pictures, list_pictures, shown
from apart_fast.loaders.datasets.reading import Resizing
from apart_fast.loaders.datasets.splits import Dataset

CACHE = derived.FOLDER
_UNUSED = ("val", "valid", "validation", "dev", "extra")  # folders that others put beside train and test


def has_folders(root: Path) -> bool:
    """Whether one of train/ and test/ is there, be it right or wrong."""
    return any(os.path.lexists(root / part) for part in PARTS)


def load_folder(
    root: Path,
    *,
    name: str = "folder",
    flip: bool = True,
    progress: bool = True,
    names: Sequence[str] | None = None,
    cache: str | os.PathLike | None = None,
    to: Resizing | None = None,
) -> Dataset:
    """Load root/train/<class>/* and root/test/<class>/* (see `list_pictures`, `read_picture`).

    Classes are numbered by name, images are sorted by name. The images have one channel if all of them are gray,
    otherwise three. Decoded images are kept in one file, and used again as long as names, sizes and times of the
    pictures stay the same. It is mapped into memory, so that only what is used of it takes any.

    Args:
        names: of the classes of a known set, in the order of its labels: the folders are matched with them, or named
            by the labels themselves.
        cache: folder of that file. None: `root/.apart_fast`; if that cannot be written, the images lie in memory.
        to: how the pictures are brought to one size. None: they have to have one.

    Raises:
        UserError: a folder is missing or empty, train and test have different classes or others than `names`,
            something is neither class nor picture, an image cannot be read or has another size than the others, no
            space is left, `cache` cannot be written, or the images do not fit into the memory where they have to.
    """
    found = {part: list_pictures(root / part) for part in PARTS}
    if names is None:
        classes = [_printable(label) for label in found["train"]]
        chosen = {part: list(labels.values()) for part, labels in found.items()}
        if found["train"].keys() != found["test"].keys():
            odd = sorted(found["train"].keys() ^ found["test"].keys())[0]
            raise UserError(
                f"class {_printable(odd)!r} is in only one of train and test of {shown(root)}: "
                "both need the same classes"
            )
    else:
        classes = list(names)
        chosen = {part: _in_order(labels, names, root / part, name) for part, labels in found.items()}
    _say_what_is_odd(root)
    labels = [
        np.repeat(np.arange(len(classes), dtype=np.int64), [len(label) for label in chosen[part]]) for part in PARTS
    ]
    listed = [label for part in PARTS for label in chosen[part]]
    source = pictures(
        key_of(_named(listed, root), to),
        sum(map(len, listed)),
        sum(sum(label.sizes) for label in listed),
        lambda: (path for label in listed for path in label.paths()),
        to,
    )
    train, test = convert(source, labels, root, name=name, cache=cache, progress=progress)
    return Dataset(name, train, test, classes, flip)


def _named(listed: Sequence[Pictures], root: Path) -> Iterator[bytes]:
    """Names, sizes and times of the files: cheap, and changes when an image does."""
    for label in listed:
        folder = os.path.relpath(label.folder, root)
        for name, size, time in zip(label.names, label.sizes, label.times, strict=True):
            yield os.fsencode(os.path.join(folder, name))
            yield f"\0{size}\0{time}\n".encode()


def _in_order(found: dict[str, Pictures], names: Sequence[str], folder: Path, name: str) -> list[Pictures]:
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
