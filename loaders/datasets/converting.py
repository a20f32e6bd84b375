"""From where the images of a data set come to one file of raw pixels, which is mapped into memory."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from tqdm import tqdm

from apart_fast.device import available_bytes, processes_here, usable_cores
from apart_fast.errors import UserError
from apart_fast.loaders.datasets import derived
from apart_fast.loaders.datasets.decode import Decoded, Pattern, decode, pattern_of
from apart_fast.loaders.datasets.fingerprints import digest
from apart_fast.loaders.datasets.listing import shown
from apart_fast.loaders.datasets.mapped import ImageFile, checksum
from apart_fast.loaders.datasets.picture import Encoded
from apart_fast.loaders.datasets.reading import Resizing
from apart_fast.loaders.datasets.splits import Kept, Split
from apart_fast.loaders.datasets.writing import in_memory, write_images

PARTS = ("train", "test")
_READING = b"2"  # changes whenever the same files are read as other pixels
# fewer pictures are decoded sooner than processes for it have started
_FEW, _FEW_BYTES = 20_000, 2**25
_WORTH_A_LINE = 10**9  # bytes of what nobody may need any more


@dataclass(frozen=True)
class Source:
    """Images that are not decoded yet.

    Attributes:
        key: 32 hexadecimal digits, which change when an image does, or what is made of it.
        pattern: what all of them must be like; looked at when they are decoded.
        decoded: all of them in order, those of the first part and then those of the next.
    """

    key: str
    pattern: Callable[[], Pattern]
    decoded: Callable[[Pattern], Iterator[Decoded]]


def key_of(pieces: Iterable[bytes], to: Resizing | None) -> str:
    """The key of a source of which `pieces` say all that its images depend on, besides how they are resized."""
    found = hashlib.blake2b(digest_size=16, person=_READING)
    for piece in pieces:
        found.update(piece)
    if to is not None:
        found.update(f"\0{to.size} {to.how}".encode())
    return found.hexdigest()


def pictures(
    key: str, count: int, size: int, files: Callable[[], Iterator[str | Encoded]], to: Resizing | None
) -> Source:
    """Picture files as a source.

    Args:
        count, size: how many there are, and bytes of all of them.
        files: gives them in order.
    """
    cores = usable_cores()
    workers = 0 if (count < _FEW and size < _FEW_BYTES) or cores < 2 else cores
    return Source(key, lambda: pattern_of(next(files()), to), lambda pattern: decode(files(), pattern, workers))


def convert(
    source: Source,
    labels: Sequence[np.ndarray],
    root: Path,
    *,
    name: str,
    cache: str | os.PathLike | None,
    progress: bool,
) -> list[Split]:
    """The parts of a data set, train and test, with their images in one file, which is written unless it is there.

    Args:
        labels: int64 [N] of each part.
        root: the folder of the data, for messages; the file lies in `root/.apart_fast` or, if that cannot be written,
            the images lie in memory.
        name: of the data set.
        cache: folder of the file instead.

    Raises:
        UserError: an image cannot be read or has another size than the others, no space is left, `cache` cannot be
            written, or the images do not fit into the memory where they have to.
    """
    folder = derived.folder_for(root, cache)
    conversion = _Conversion(source, labels, progress)
    path = folder / f"images-{source.key}.npy"
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
        warnings.warn(f"{shown(root)}: {line}", stacklevel=3)
    return [
        Split(store, torch.from_numpy(y), f"{name}-{part}", folder, None, file, Kept(known, digest(y)))
        for part, (store, file), y, known in zip(PARTS, stores, labels, note["fingerprints"], strict=True)
    ]


class _Conversion:
    """From a source to one array.

    Args:
        labels: int64 [N] of each part.

    Attributes:
        written: whether a file was.
    """

    def __init__(self, source: Source, labels: Sequence[np.ndarray], progress: bool):
        self._source, self._labels, self._progress = source, labels, progress
        self._count = sum(map(len, labels))
        self.written = False

    def write(self, path: Path) -> derived.Note:
        """Decode all of them into a file; returns what is known of it then."""
        pattern = self._source.pattern()
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
        pattern, free = self._source.pattern(), available_bytes() / processes_here()
        if self._most(pattern) > free:
            raise UserError(
                f"{error}; the memory ({free / 1e9:.3g} GB free) is too small for the decoded images "
                f"({self._most(pattern) / 1e9:.3g} GB)"
            )
        warnings.warn(f"{error}; the decoded images lie in memory, and will be decoded again", stacklevel=4)
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

    def _most(self, pattern: Pattern) -> int:
        return self._count * int(np.prod(pattern.shape))

    def _write(self, file: IO[bytes], pattern: Pattern) -> derived.Note:
        written = write_images(file, pattern.shape[:2], self._shown(self._source.decoded(pattern)), self._labels)
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
            "pictures, or their size, become again what they were",
            stacklevel=4,
        )
