"""The device that work runs on: which one, and how host memory is kept."""

import ctypes
import sys

import torch

from apart_fast.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def pick_device(name: str | None) -> torch.device:
    """The named device, or a GPU if there is one, or the CPU; a GPU is made the current one.

    Raises:
        UserError: no such device, or no GPU.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: give cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs; give --device cpu, or none")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported: give cpu or cuda")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # torch does not take one without an index as the current one
        torch.cuda.set_device(device)  # streams, graphs and events belong to it
    return device


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks instead of giving their pages back to the system after each use.

    The process stays as large as it ever was. Returns whether it could be done (Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
