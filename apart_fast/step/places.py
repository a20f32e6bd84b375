"""Where the rows of omega lie: on the device, in host memory or on disk, by name in `PLACES`."""

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from apart_fast.device import available_bytes, processes_here
from apart_fast.errors import UserError
from apart_fast.files import NO_ROOM
from apart_fast.step.methods import OMEGA_DTYPES, Method
from apart_fast.step.omega import Memory
from apart_fast.step.staging import StagedMemory

Folder = str | os.PathLike | None


def make_memory(
    kind: str,
    num_examples: int,
    image_shape: Sequence[int],
    padding: int,
    dtype: torch.dtype,
    device: torch.device,
    folder: Folder = None,
    maps: int = 1,
    dtypes: Sequence[str] = OMEGA_DTYPES,
) -> Memory:
    """A memory of zeros for images [H, W, C] whose rows, of `maps` maps, lie where `kind` (a key of `PLACES`) says.

    Args:
        dtypes: those that the rows could have, of which smaller ones are named where there is no room.
        folder: for "disk": where its file lies, made if need be. The file has no name and is gone with the process,
            however that ends: checkpoints hold what is needed.

    Raises:
        UserError: unknown kind, no folder for "disk", not enough host memory, or a folder that is full or cannot be
            written.
    """
    if kind not in PLACES:
        raise UserError(f"unknown omega_device {kind!r}: choose one of {', '.join(PLACES)}")
    h, w, c = image_shape
    shape = (num_examples, *((maps,) if maps > 1 else ()), h + 2 * padding, w + 2 * padding, c)
    try:
        return PLACES[kind](shape, dtype, device, folder)
    except _TooLarge as error:
        smaller = [name for name in dtypes if getattr(torch, name).itemsize < dtype.itemsize]
        ways = [f"as {name}" for name in smaller[-1:]] + error.ways
        raise UserError(f"{error}: store it {', or '.join(ways)}") from error


def memory_of(
    method: Method,
    kind: str,
    num_examples: int,
    image_shape: Sequence[int],
    padding: int,
    dtype: torch.dtype,
    device: torch.device,
    folder: Folder = None,
) -> Memory | None:
    """What `method` remembers of each example (see `make_memory`); None: nothing.

    Args:
        method: goes with `kind` and `dtype` (`check_keeping`).

    Raises:
        UserError: see `make_memory`.
    """
    if method.maps == 0:
        return None
    return make_memory(
        kind, num_examples, image_shape, padding, dtype, device, folder, method.maps, method.omega_dtypes
    )


class _TooLarge(Exception):
    """There is no room for omega; `ways` are others where there may be."""

    def __init__(self, text: str, *ways: str):
        super().__init__(text)
        self.ways = list(ways)


def _on_device(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, _folder: Folder) -> Memory:
    if device.type == "cpu":
        _refuse_too_large(shape, dtype)
    try:
        return Memory(torch.zeros(shape, dtype=dtype, device=device))
    except torch.OutOfMemoryError as error:
        raise _TooLarge(
            f"omega needs {_nbytes(shape, dtype) / 1e9:.1f} GB of GPU memory, which is not free",
            "in host memory (omega_device host)",
            "on disk (omega_device disk)",
        ) from error


def _refuse_too_large(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    needed, available = _nbytes(shape, dtype), available_bytes() / processes_here()
    if needed > available:  # the system would promise it, and end the process when it is used
        raise _TooLarge(
            f"omega needs {needed / 1e9:.1f} GB of host memory, and {available / 1e9:.1f} GB are free"
            + " for each process" * (processes_here() > 1),
            "on disk (omega_device disk)",
        )


def _in_host_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, _folder: Folder) -> Memory:
    _refuse_too_large(shape, dtype)
    home = torch.zeros(shape, dtype=dtype)  # only the boxes are pinned: torch pins in powers of two
    return Memory(home) if device.type == "cpu" else StagedMemory(home, device)


def _on_disk(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, folder: Folder) -> Memory:
    if folder is None:
        raise UserError("omega_device disk needs a folder for the file: give omega_folder")
    if not hasattr(os, "posix_fallocate"):
        raise UserError("omega_device disk needs Linux: choose host")
    mapped = _map_file(Path(folder), _nbytes(shape, dtype))
    home = torch.frombuffer(mapped, dtype=dtype).view(shape)
    size = home[0].nbytes

    def announce(rows: np.ndarray) -> None:
        # all rows are read from the disk at once, and no more than they
        for row in rows.tolist():
            begin = row * size // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, begin, (row + 1) * size - begin)

    return StagedMemory(home, device, announce)


PLACES: dict[str, Callable[..., Memory]] = {"device": _on_device, "host": _in_host_memory, "disk": _on_disk}


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _map_file(folder: Path, size: int) -> mmap.mmap:
    """A new file without a name, mapped; all its blocks are there, so that the disk cannot become full later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".omega-", dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        where = f"omega ({size / 1e9:.1f} GB) in {folder}"
        if error.errno in NO_ROOM:
            raise UserError(f"no space left for {where}: free some space or choose another folder") from error
        raise UserError(f"cannot write {where} ({error.strerror}): choose a folder that can be written") from error
