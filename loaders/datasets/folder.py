"""Folders of images: train/<class>/* and test/<class>/*, decoded once into one file, which is mapped into memory."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from tqdm import tqdm

from apart_fast.device import available_bytes, usable_cores
from apart_fast.errors import UserError
from apart_fast.loaders.datasets import derived
from apart_fast.loaders.datasets.classes import OtherClasses, match_classes
from apart_fast.loaders.datasets.decode import Decoded, Pattern, decode
from apart_fast.loaders.datasets.fingerprints import digest
from apart_fast.loaders.datasets.listing import Pictures, list_pictures, shown
from apart_fast.loaders.datasets.mapped import ImageFile, checksum
from apart_fast.loaders.datasets.picture import read_picture
from apart_fast.loaders.datasets.splits import Dataset, Kept, Split
from apart_fast.loaders.datasets.writing import in_memory, write_images

CACHE = derived.FOLDER
_PARTS = ("train", "test")
_READING = b"2"  # changes whenever the same files are read as other pixels
_UNUSED = ("val", "valid", "validation", "dev", "extra")  # folders that others put beside train and test
# fewer pictures are decoded sooner than processes for it have started
_FEW, _FEW_BYTES = 20_000, 2**25
_WORTH_A_LINE = 10**9  # bytes of what nobody may need any more


def load_folder(
    root: Path,
    *,
    name: str = "folder",
    flip: bool = True,
    progress: bool = True,
    names: Sequence[str] | None = None,
    cache: str | os.PathLike | None = None,
) -> Dataset:
    """Load root/train/<class>/* and root/test/<class>/* (pictures of one size; see `list_pictures`, `read_picture`).

    Classes are numbered by name, images are sorted by name. The images have one channel if all of them are gray,
    otherwise three. Decoded images are kept in one file, and used again as long as names, sizes and times of the
    pictures stay the same. It is mapped into memory, so that only what is used of it takes any.

    Args:
        names: of the classes of a known set, in the order of its labels: the folders are matched with them, or named
            by the labels themselves.
        cache: folder of that file. None: `root/.apart_fast`; if that cannot be written, the images lie in memory.

    Raises:
        UserError: a folder is missing or empty, train and test have different classes or others than `names`,
            something is neither class nor picture, an image cannot be read or has another size than the others, no
            space is left, `cache` cannot be written, or the images do not fit into the memory where they have to.
    """
    found = {part: list_pictures(root / part) for part in _PARTS}
    if names is None:
        classes = [_printable(label) for label in found["train"]]
        pictures = {part: list(labels.values()) for part, labels in found.items()}
        if found["train"].keys() != found["test"].keys():
            odd = sorted(found["train"].keys() ^ found["test"].keys())[0]
            raise UserError(
                f"class {_printable(odd)!r} is in only one of train and test of {shown(root)}: "
                "both need the same classes"
            )
    else:
        classes = list(names)
        pictures = {part: _in_order(labels, names, root / part, name) for part, labels in found.items()}
    _say_what_is_odd(root)
    labels = [
        np.repeat(np.arange(len(classes), dtype=np.int64), [len(label) for label in pictures[part]]) for part in _PARTS
    ]
    folder = derived.folder_for(root, cache)
    conversion = _Conversion([label for part in _PARTS for label in pictures[part]], labels, progress)
    path = folder / f"images-{conversion.key(root)}.npy"
    stores: list[tuple[torch.Tensor, ImageFile | None]]
    try:
        note = derived.provide(path, conversion.write, conversion.look, rewrite=True)
        files = [ImageFile(path, first, len(part)) for first, part in zip((0, len(labels[0])), labels, strict=True)]
        stores = [(file.images, file) for file in files]
    except UserError as error:
        # data in a folder that cannot be written is common, and images that fit are decoded again each time
        if cache is not None or getattr(error.__cause__, "errno", None) not in derived.NOT_WRITABLE:
            raise
        images, note = conversion.in_memory(error)
        stores = [(part, None) for part in images.split([len(part) for part in labels])]
    if conversion.written:
        _tidy(path, own=cache is None)
    for line in note["notes"]:
        warnings.warn(f"{shown(root)}: {line}", stacklevel=2)
    train, test = (
        Split(store, torch.from_numpy(y), f"{name}-{part}", folder, None, file, Kept(known, digest(y)))
        for part, (store, file), y, known in zip(_PARTS, stores, labels, note["fingerprints"], strict=True)
    )
    return Dataset(name, train, test, classes, flip)


class _Conversion:
    """From the pictures of a data set to one array.

    Args:
        pictures: of all classes in order, of the first part and then of the next.
        labels: int64 [N] of each part.

    Attributes:
        written: whether a file was.
    """

    def __init__(self, pictures: list[Pictures], labels: list[np.ndarray], progress: bool):
        self._pictures, self._labels, self._progress = pictures, labels, progress
        self._count = sum(map(len, pictures))
        self.written = False

    def key(self, root: Path) -> str:
        """Names, sizes and times of the files: cheap, and changes when an image does."""
        found = hashlib.blake2b(digest_size=16, person=_READING)
        for label in self._pictures:
            folder = os.path.relpath(label.folder, root)
            for name, size, time in zip(label.names, label.sizes, label.times, strict=True):
                found.update(os.fsencode(os.path.join(folder, name)))
                found.update(f"\0{size}\0{time}\n".encode())
        return found.hexdigest()

    def write(self, path: Path) -> derived.Note:
        """Decode all of them into a file; returns what is known of it then."""
        pattern = self._pattern()
        derived.check_room(path.parent, self._most(pattern), f"{self._count} decoded images")
        with open(path, "wb+") as file:
            note = self._write(file, pattern)
        self.written = True
        return note

    def in_memory(self, error: UserError) -> tuple[torch.Tensor, derived.Note]:
        """Decode them into memory, because of `error`.

        Raises:
            UserError: they do not fit.
        """
        pattern, free = self._pattern(), available_bytes()
        if self._most(pattern) > free:
            raise UserError(
                f"{error}; the memory ({free / 1e9:.3g} GB free) is too small for the decoded images "
                f"({self._most(pattern) / 1e9:.3g} GB)"
            )
        warnings.warn(f"{error}; the decoded images lie in memory, and will be decoded again", stacklevel=3)
        file = io.BytesIO()
        note = self._write(file, pattern)
        return in_memory(file), note

    def look(self, path: Path, note: derived.Note, read: bool) -> bool:
        """Whether a file holds what its note says; `read`: by reading all of it."""
        images = ImageFile(path).images
        texts = [*note["fingerprints"], *note["notes"]]
        if len(images) != self._count or len(note["fingerprints"]) != 2 or not all(isinstance(t, str) for t in texts):
            return False
        if not read:
            return True
        hidden = None if self._progress and images.nbytes > derived.READ_ANEW else True
        with tqdm(total=images.nbytes, desc="checking images", unit="B", unit_scale=True, disable=hidden) as bar:
            return checksum(path, bar.update) == note["crc32"]

    def _pattern(self) -> Pattern:
        first = next(self._pictures[0].paths())
        height, width, _ = read_picture(first).pixels.shape
        return Pattern((height, width, 3), first)

    def _most(self, pattern: Pattern) -> int:
        return self._count * int(np.prod(pattern.shape))

    def _write(self, file: IO[bytes], pattern: Pattern) -> derived.Note:
        paths = (path for label in self._pictures for path in label.paths())
        decoded = decode(paths, pattern, self._workers())
        written = write_images(file, pattern.shape[:2], self._shown(decoded), self._labels)
        return {
            "crc32": written.crc32,
            "fingerprints": written.fingerprints,
            "notes": [f"{count} of {self._count} pictures {note}" for note, count in sorted(written.notes.items())],
        }

    def _shown(self, decoded: Iterator[Decoded]) -> Iterator[Decoded]:
        hidden = None if self._progress else True
        with tqdm(total=self._count, desc="decoding images", unit="img", mininterval=0.5, disable=hidden) as bar:
            for part in decoded:
                yield part
                bar.update(len(part.pixels))

    def _workers(self) -> int:
        cores = usable_cores()
        few = self._count < _FEW and sum(sum(label.sizes) for label in self._pictures) < _FEW_BYTES
        return 0 if few or cores < 2 else cores


def _tidy(path: Path, *, own: bool) -> None:
    """Remove what an older version kept of the same pictures, and say what lies there of others.

    Args:
        own: the folder belongs to the data set.
    """
    with suppress(OSError):
        path.with_suffix(".npz").unlink()
    others = [other for other in path.parent.glob("images-*.np[yz]") if other != path] if own else []
    if (size := sum(other.stat().st_size for other in others)) >= _WORTH_A_LINE:
        warnings.warn(
            f"images decoded earlier ({size / 1e9:.3g} GB) lie in {shown(path.parent)}, too: delete them unless the "
            "pictures become again what they were",
            stacklevel=3,
        )


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
