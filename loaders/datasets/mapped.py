"""Images in an npy file, mapped into memory: read where they are needed, and shared by all processes that read them."""

import math
import mmap
import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

_BLOCK = 2**22  # bytes that are read at a time
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python's mmap does not name


class ReadAhead:
    """Tells the system which places of a mapped file will be read soon, where single ones are, all over it."""

    def __init__(self, path: Path, mapped: mmap.mmap):
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # a page that is not there yet brings no neighbours along

    def __call__(self, places: Iterable[int], size: int) -> None:
        """Have `size` bytes from each of `places` on fetched from the disk, all at once, without waiting for them."""
        if hasattr(os, "posix_fadvise"):
            for place in places:
                os.posix_fadvise(self._handle, place, size, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)


class ImageFile:
    """Images `first` to `first + count` of a file that `write_images` has written.

    A copy that is pickled opens the file anew, so that processes get none of the images sent.

    Attributes:
        images: uint8 [N, H, W, C] on the CPU, mapped. What is written to it stays in this process.

    Raises:
        ValueError: there are no such images in it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike, first: int = 0, count: int | None = None, *, scattered: bool = False):
        self.path, self.first = Path(path), first
        shape, self._offset = _header(self.path)
        self.count = shape[0] - first if count is None else count
        if not 0 <= first <= first + self.count <= shape[0]:
            raise ValueError(f"{path} holds {shape[0]} images")
        pixels, mapped = _map(self.path, shape, self._offset)
        self.images = pixels[first : first + self.count]
        self._ahead = ReadAhead(self.path, mapped) if scattered else None

    @property
    def is_scattered(self) -> bool:
        """Single images are read, all over the file, and announced by `will_need`."""
        return self._ahead is not None

    def scattered(self) -> "ImageFile":
        """The same images, for reading single ones."""
        return ImageFile(self.path, self.first, self.count, scattered=True)

    def will_need(self, rows: Iterable[int]) -> None:
        """These images, counted from `first`, will be read soon: the disk may begin."""
        if self._ahead is not None:
            size = self.images[0].nbytes
            begin = self._offset + self.first * size
            self._ahead((begin + row * size for row in rows), size)

    def __reduce__(self) -> tuple:
        return _reopen, (self.path, self.first, self.count, self.is_scattered)


def _reopen(path: Path, first: int, count: int, scattered: bool) -> ImageFile:
    return ImageFile(path, first, count, scattered=scattered)


def _header(path: Path) -> tuple[tuple[int, ...], int]:
    """(shape, place of the first pixel)."""
    with open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path} is of another version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        place = file.tell()
        if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] not in (1, 3) or not all(shape):
            raise ValueError(f"{path} holds no images")
        if os.fstat(file.fileno()).st_size != place + math.prod(shape):
            raise ValueError(f"{path} is shorter or longer than it says")
    return shape, place


def _map(path: Path, shape: tuple[int, ...], offset: int) -> tuple[torch.Tensor, mmap.mmap]:
    with open(path, "rb") as file:
        try:
            # torch wants to be able to write; such pages would be private, and none are set aside for it
            flags = mmap.MAP_PRIVATE | (_NO_RESERVE if os.uname().sysname == "Linux" else 0)
            mapped = mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:  # a system that sets memory aside all the same
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warning of what cannot be written
        pixels = torch.from_numpy(np.frombuffer(mapped, np.uint8, offset=offset).reshape(shape))
    return pixels, mapped


def checksum(path: Path, seen: Callable[[int], object] = lambda count: None) -> int:
    """CRC-32 of the pixels in a file; `seen` is told how many bytes were read.

    Raises:
        ValueError: it holds no images.
        OSError: it cannot be read.
    """
    _, place = _header(path)
    found = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(place)
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
            seen(len(block))
    return found
