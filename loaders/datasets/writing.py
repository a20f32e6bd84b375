"""Decoded pictures written to a file in one go, as they come."""

import io
import zlib
from collections.abc import Iterable, Sequence
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from apart_fast.loaders.datasets.decode import Decoded
from apart_fast.loaders.datasets.fingerprints import Fingerprint

_BLOCK = 2**22  # bytes that are widened at a time


class Written(NamedTuple):
    """What `write_images` has written.

    Attributes:
        fingerprints: one for each part, as `fingerprint` gives them.
        crc32: of the pixels.
        notes: how many pictures have which note.
    """

    fingerprints: list[str]
    crc32: int
    notes: dict[str, int]


def write_images(
    file: IO[bytes], size: tuple[int, int], decoded: Iterable[Decoded], labels: Sequence[NDArray]
) -> Written:
    """Write pictures of H x W pixels to an empty file as an array of npy format, in one go.

    They have one channel if none of them holds colour, else three.

    Args:
        decoded: all of them, in order.
        labels: int64 [N], of each part: the parts follow one another.
    """
    writer = _Writer(file, size, labels)
    notes: dict[str, int] = {}
    for part in decoded:
        writer.add(part.pixels, part.colored)
        for note, count in part.notes.items():
            notes[note] = notes.get(note, 0) + count
    return Written(writer.sums.finish(), writer.sums.crc32, notes)


class _Writer:
    """The array in writing: one channel until the first picture with colour comes."""

    def __init__(self, file: IO[bytes], size: tuple[int, int], labels: Sequence[NDArray]):
        self._file, self._size, self._labels = file, size, labels
        self._done = 0
        self._begin(channels=1)

    def _begin(self, channels: int) -> None:
        self._channels = channels
        shape = (sum(map(len, self._labels)), *self._size, channels)
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        self._offset = self._file.tell()
        self.sums = _Sums(shape[1:], self._labels)

    def add(self, pixels: NDArray[np.uint8], colored: bool) -> None:
        """uint8 [K, H, W, 3], the next ones."""
        if colored and self._channels == 1:
            self._widen()
        pixels = np.ascontiguousarray(pixels[..., : self._channels])
        self._file.write(pixels.data)
        self.sums.add(pixels)
        self._done += len(pixels)

    def _widen(self) -> None:
        """Give what is there three channels, from the end on, so that nothing is overwritten before it is read."""
        old, area = self._offset, self._size[0] * self._size[1]
        self._begin(channels=3)
        at_a_time = max(1, _BLOCK // area)
        firsts = range(0, self._done, at_a_time)
        for first in reversed(firsts):
            gray = self._read(old + first * area, min(at_a_time, self._done - first), 1)
            self._file.seek(self._offset + 3 * first * area)
            self._file.write(np.repeat(gray, 3, axis=3).data)
        for first in firsts:
            self.sums.add(self._read(self._offset + 3 * first * area, min(at_a_time, self._done - first), 3))
        self._file.seek(self._offset + 3 * self._done * area)

    def _read(self, place: int, count: int, channels: int) -> NDArray[np.uint8]:
        self._file.seek(place)
        shape = (count, *self._size, channels)
        return np.frombuffer(self._file.read(int(np.prod(shape))), np.uint8).reshape(shape)


class _Sums:
    """Fingerprints of the parts and the checksum of all, while the images go by."""

    def __init__(self, shape: Sequence[int], labels: Sequence[NDArray]):
        self._labels = labels
        self._left = [len(part) for part in labels]
        self._parts = [Fingerprint((len(part), *shape)) for part in labels]
        self.crc32 = 0

    def add(self, images: NDArray[np.uint8]) -> None:
        self.crc32 = zlib.crc32(images.data, self.crc32)
        for i, part in enumerate(self._parts):
            mine, images = images[: self._left[i]], images[self._left[i] :]
            part.add(mine)
            self._left[i] -= len(mine)

    def finish(self) -> list[str]:
        return [part.finish(labels) for part, labels in zip(self._parts, self._labels, strict=True)]


def in_memory(file: io.BytesIO) -> torch.Tensor:
    """The images that `write_images` has written there, without another copy."""
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return torch.from_numpy(np.frombuffer(file.getbuffer(), np.uint8, offset=file.tell()).reshape(shape))
