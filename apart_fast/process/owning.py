"""A folder into which one process at a time writes."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import held, telling

LOCK = ".lock"  # its name in the folder; what it holds says who owns it
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}

_handles: set[int] = set()


def _let_go() -> None:
    """In a forked child: the lock is its parent's, and would outlive it in the child."""
    for handle in _handles:
        with suppress(OSError):
            os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Within: no other process owns `folder`, which is made if need be, and nothing is written to its place once it is
    removed or renamed (see `held`).

    The lock ends with the process, however that ends. A folder that was made and is empty afterwards is removed. Where
    the file system has no locks, there is none.

    Raises:
        UserError: another process owns it, or it cannot be written.
    """
    with without_trace(folder):
        with telling(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), held(folder):
            yield


@contextmanager
def without_trace(folder: Path) -> Iterator[None]:
    """A folder that is made within, and is empty afterwards, is removed."""
    there = folder.exists()
    try:
        yield
    finally:
        if not there:
            with suppress(OSError):  # it holds something
                folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    handle = _take(folder, path)
    _handles.add(handle)
    try:
        with suppress(OSError):  # a full disk: it cannot say who it is
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                path.unlink()
        if handle in _handles:
            _handles.remove(handle)
            os.close(handle)


def _take(folder: Path, path: Path) -> int:
    """A descriptor of the locked file at `path`."""
    while True:
        with telling(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise UserError(f"{folder} is in use by {owner}: wait until that has ended, or stop it") from error
        with suppress(FileNotFoundError):  # its owner has removed it in the meantime
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
