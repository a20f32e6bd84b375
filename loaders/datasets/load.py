"""Data sets by name: the known ones of the table, any folder of images, and those of Hugging Face."""

import os
import pickle
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from apart_fast.errors import UserError
from apart_fast.files import expanded, remove_abandoned
from apart_fast.loaders.datasets.converting import Source, convert, key_of
from apart_fast.loaders.datasets.decode import Decoded, Pattern
from apart_fast.loaders.datasets.derived import folder_for
from apart_fast.loaders.datasets.fetch import FETCHING, fetch, find, reason
from apart_fast.loaders.datasets.fingerprints import digest
from apart_fast.loaders.datasets.folder import has_folders, load_folder
from apart_fast.loaders.datasets.hugging_face import load_hugging_face
from apart_fast.loaders.datasets.read import READERS, Arrays
from apart_fast.loaders.datasets.reading import Reading, Resizing
from apart_fast.loaders.datasets.resizing import resize
from apart_fast.loaders.datasets.splits import Dataset, Split
from apart_fast.loaders.datasets.table import FOLDER, HUGGING_FACE, KNOWN, KnownSet

_AT_ONCE = 256  # images of a known set that are resized together


class LoadDataset(Protocol):
    """What `DATASETS` holds: see `load_dataset` for the arguments."""

    def __call__(
        self, root: Path, *, download: bool, progress: bool, cache: Path | None, reading: Reading
    ) -> Dataset: ...


def load_dataset(
    name: str,
    root: str | os.PathLike,
    *,
    download: bool = True,
    progress: bool = True,
    cache: str | os.PathLike | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """Load a data set of the table `DATASETS` from the folder `root`; "hf:NAME" is one of Hugging Face.

    Existing files in `root` are never altered. A named set may also lie in `root` as a folder of images (see
    `load_folder`); Fashion-MNIST is also taken from Debian's package.

    Args:
        download: fetch a named set that is missing.
        progress: show a bar while a folder of images is decoded for the first time.
        cache: where what is derived from the files goes. None: `root/.apart_fast`.
        reading: how pictures are brought to one size, and which columns and splits of a Hugging Face set are meant.

    Raises:
        UserError: the set is unknown, missing, half-downloaded or cannot be fetched; for folders of images: mixed
            sizes, an empty class, other classes than those of the named set, an unreadable image, anything else
            among the images; no space left.
    """
    kind, colon, address = name.partition(":")
    if kind not in DATASETS or (colon and kind != HUGGING_FACE):
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}, or {HUGGING_FACE}:NAME")
    reading = reading or Reading()
    if reading.columns and kind != HUGGING_FACE:
        flag = f"--{next(iter(reading.columns)).replace('_', '-')}"
        raise UserError(f"{flag} is for Hugging Face's data sets, and this is {name}: leave it out")
    cache = None if cache is None else expanded(Path(cache))
    load: Callable[..., Dataset] = partial(
        DATASETS[kind], download=download, progress=progress, cache=cache, reading=reading
    )
    return load(expanded(Path(root)), address=address) if colon else load(expanded(Path(root)))


def load_known(
    name: str, root: Path, *, download: bool, progress: bool, cache: Path | None, reading: Reading
) -> Dataset:
    """Load a set of the table `KNOWN`, which is fetched if need be; see `load_dataset`."""
    known = KNOWN[name]
    remove_abandoned(root, f"{FETCHING}*")
    source = find(known, root, elsewhere=False)
    as_folder = has_folders(root)
    if source is None and as_folder:
        return _from_folder(name, known, root, progress, cache, reading.resizing)
    if source is None:
        source = find(known, root, elsewhere=True)
    elif as_folder:
        warnings.warn(f"{name} is read from its files in {source}, not from train/ and test/ in {root}", stacklevel=2)
    if known.needs and find_spec(known.needs) is None:
        raise UserError(f"{name} cannot be read without {known.needs}: pip install {known.needs}")
    if source is None:
        fetch(name, known, root, download=download)
        source = root
    try:
        arrays = READERS[known.reader](known, source)
        _check(known, arrays)
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, zlib.error, pickle.PickleError) as error:
        raise UserError(
            f"{name} in {source} is incomplete or damaged ({reason(error)}): "
            f"delete {' and '.join(known.files)} there and run again"
        ) from error
    if arrays.differing:  # not an error: reduced copies are useful
        warnings.warn(
            f"{name} in {source} ({len(arrays.labels)} training and {len(arrays.test_labels)} test images): "
            f"{' and '.join(arrays.differing)} differ from the published files",
            stacklevel=2,
        )
    labels = [y.astype(np.int64) for y in (arrays.labels, arrays.test_labels)]
    parts = [np.ascontiguousarray(x) for x in (arrays.images, arrays.test_images)]
    to = reading.resizing
    if to is not None and (to.size, to.size) != known.shape[:2]:
        train, test = convert(_resized(parts, labels, to), labels, root, name=name, cache=cache, progress=progress)
    else:
        folder = folder_for(root, cache)
        train, test = (
            Split(torch.from_numpy(x), torch.from_numpy(y), f"{name}-{part}", folder)
            for part, x, y in zip(("train", "test"), parts, labels, strict=True)
        )
    return Dataset(name, train, test, list(arrays.classes), known.flip)


def _resized(parts: list[np.ndarray], labels: list[np.ndarray], to: Resizing) -> Source:
    """uint8 images [N, H, W, C] of each part, brought to one size."""

    def decoded(_: Pattern) -> Iterator[Decoded]:
        for images in parts:
            gray = images.shape[3] == 1
            for first in range(0, len(images), _AT_ONCE):
                some = (Image.fromarray(x[..., 0] if gray else x) for x in images[first : first + _AT_ONCE])
                yield Decoded(np.stack([resize(x, to) for x in some]), not gray, Counter())

    pattern = Pattern((to.size, to.size, 3), "", to)
    # the labels too: its note keeps fingerprints of both
    key = key_of([digest(part).encode() for part in (*parts, *labels)], to)
    return Source(key, lambda: pattern, decoded)


def _check(known: KnownSet, arrays: Arrays) -> None:
    """ValueError unless shapes and labels are those of the set (the numbers of images may differ)."""
    for x, y in ((arrays.images, arrays.labels), (arrays.test_images, arrays.test_labels)):
        if x.shape != (len(y), *known.shape) or not len(y) or not 0 <= y.min() <= y.max() < known.classes:
            raise ValueError(f"{x.shape} images do not fit {len(y)} labels")


def _from_folder(
    name: str, known: KnownSet, root: Path, progress: bool, cache: Path | None, to: Resizing | None
) -> Dataset:
    dataset = load_folder(root, name=name, flip=known.flip, progress=progress, names=known.names, cache=cache, to=to)
    size = known.shape[:2] if to is None else (to.size, to.size)
    found, wanted = (*dataset.train.images.shape[1:], len(dataset.classes)), (*size, known.shape[2], known.classes)
    if found != wanted:
        raise UserError(
            f"the images in {root} are not {name} (height, width, channels, classes are {found}, not {wanted}): "
            "load them as data set 'folder'"
        )
    sizes = (len(dataset.train), len(dataset.test))
    if sizes != known.sizes:  # not an error: reduced copies are useful
        warnings.warn(f"{root} holds {sizes} training and test images of {name} instead of {known.sizes}", stacklevel=2)
    return dataset


def _load_any_folder(root: Path, *, download: bool, progress: bool, cache: Path | None, reading: Reading) -> Dataset:
    return load_folder(root, progress=progress, cache=cache, to=reading.resizing)  # there is nothing to download


DATASETS: dict[str, LoadDataset] = {
    **{name: partial(load_known, name) for name in KNOWN},
    FOLDER: _load_any_folder,
    HUGGING_FACE: load_hugging_face,
}
