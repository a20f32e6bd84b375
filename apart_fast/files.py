"""Files are written whole or not at all."""

import copy
import dataclasses
import errno
import fcntl
import glob
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from apart_fast.errors import NO_ROOM, UserError

TEMPORARY = ".apart_fast.tmp"  # how names of files in writing end: the folder may be of others too
_NOT_THERE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
    *(errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EBUSY),
}

_held: dict[str, os.stat_result] = {}


def expanded(path: Path) -> Path:
    """`path` with a home folder for its `~`.

    Raises:
        UserError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no home folder is known for {path.parts[0]}: write the whole path") from error


def expand_paths(settings: Any) -> Any:
    """Settings (a dataclass) in whose paths a home folder stands for `~`.

    Raises:
        UserError: there is no such user.
    """

    def expand(value: object) -> object:
        if isinstance(value, Path):
            return expanded(value)
        return tuple(map(expand, value)) if isinstance(value, tuple) else value

    made = copy.copy(settings)
    for field in dataclasses.fields(settings):
        setattr(made, field.name, expand(getattr(settings, field.name)))
    return made


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within: nothing is written to places in `folder` once it has been removed or renamed (see `check_held`)."""
    name = os.path.abspath(folder)
    _held[name] = os.stat(folder)
    try:
        yield
    finally:
        _held.pop(name, None)


def check_held(path: str | os.PathLike) -> None:
    """Refuse a place in a folder that is `held` and gone: it would be made anew with nothing else in it.

    Raises:
        UserError: it is gone.
    """
    for name, status in list(_held.items()):
        try:
            if Path(os.path.abspath(path)).is_relative_to(name):
                same = os.path.samestat(os.stat(name), status)
            else:
                continue
        except OSError:  # with the working directory, for instance
            same = False
        if not same:
            raise UserError(
                f"{name} was removed or renamed while it was written to: nothing more is written; "
                "where it was renamed, go on with its new name"
            )


@contextmanager
def telling(path: str | os.PathLike) -> Iterator[None]:
    """Within, errors of writing to `path` become a line.

    Raises:
        UserError: the disk is full, or the place cannot be written or is gone (see `held`).
    """
    try:
        yield
    except OSError as error:
        check_held(path)
        if error.errno in NO_ROOM:
            raise UserError(f"no space left for {path}: free some space or choose another folder") from error
        if error.errno in _NOT_THERE:
            raise UserError(f"cannot write {path} ({error.strerror}): choose a folder that can be written") from error
        raise


def check_writable(path: str | os.PathLike) -> None:
    """Refuse a place where no file can be written, before hours of work go into one.

    Raises:
        UserError: as `atomic_path`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path} (it is a folder): name a file")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with suppress(_Undone), atomic_path(path):
            raise _Undone
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


class _Undone(Exception):
    pass


def _make_folder(**where: Any) -> tuple[int, str]:
    """As `tempfile.mkstemp` makes a file."""
    made = tempfile.mkdtemp(**where)
    return os.open(made, os.O_RDONLY), made


def _begin(path: Path, make: Callable[..., tuple[int, str]]) -> tuple[int, Path]:
    """(handle, path) of a temporary file or folder beside `path`, locked; that of an earlier writer is removed."""
    check_held(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f".{glob.escape(path.name)}.*{TEMPORARY}")
    while True:
        handle, name = make(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        try:
            locked = lock(handle, name)
        except BaseException:
            os.close(handle)
            raise
        if locked:
            return handle, Path(name)
        os.close(handle)  # taken for an abandoned one in the moment before it was locked


@contextmanager
def atomic_path(path: str | os.PathLike, previous: str | os.PathLike | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On any exception the temporary file is removed and an existing `path` stays as it was. While it is written it is
    locked, so that `remove_abandoned` can tell it from what a killed process has left; that of an earlier writer of
    `path` is removed.

    Args:
        previous: what lies at `path` so far is kept under this name; at each moment one of the two is whole.

    Raises:
        UserError: the disk is full or the folder cannot be written, or it is gone (see `held`).
    """
    path = Path(path)
    temporary = handle = None
    try:
        with telling(path):
            handle, temporary = _begin(path, tempfile.mkstemp)
            yield temporary
            check_held(path)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private to the owner
            if previous is not None and path.is_file():
                _keep(path, previous)
            os.replace(temporary, path)
            temporary = None
    finally:
        if temporary is not None:
            with suppress(OSError):  # gone, or in what cannot be written any more
                temporary.unlink()
        if handle is not None:
            os.close(handle)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success flush what lies in it to disk and rename it to `path`, where nothing
    or an empty folder lies.

    On any exception it is removed. It is locked and removed as the file of `atomic_path` is.

    Raises:
        UserError: as `atomic_path`; or something lies at `path` by then.
    """
    path = Path(path)
    temporary = handle = None
    try:
        with telling(path):
            handle, temporary = _begin(path, _make_folder)
            yield temporary
            check_held(path)
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as stream:
                        os.fsync(stream.fileno())
            temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders private to the owner
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise UserError(f"{path} is there by now: name another folder") from error
                raise
            temporary = None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _keep(path: Path, previous: str | os.PathLike) -> None:
    """Give the file at `path` a second name, in place of what has it."""
    with suppress(FileNotFoundError):
        os.unlink(previous)
    try:
        os.link(path, previous)
    except OSError:  # a file system without links
        os.replace(path, previous)


def lock(handle: int, path: str | os.PathLike) -> bool:
    """Lock the open file or folder `handle` until it is closed or the process ends; False: `path` is gone."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def remove_abandoned(folder: Path, pattern: str = f".*{TEMPORARY}") -> None:
    """Remove temporary files and folders of processes that were killed: those that nobody has locked."""
    for left in folder.glob(pattern):
        with suppress(OSError):  # in use; or no right to, or no locks here
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            finally:
                os.close(handle)


@cache
def _umask() -> int:
    """Asked once: it can only be read by changing it, for all threads of the process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Replace `path` by `data` in one rename (see `atomic_path` for the errors)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def atomic_create(path: str | os.PathLike, data: bytes | str) -> None:
    """Like `atomic_write`, for a file that is not there yet: of several processes one succeeds.

    Raises:
        FileExistsError: it is there.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    atomic_write(aside, data)
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def to_json(value: object) -> str:
    """Readable JSON; paths become text, NaN and infinities become null."""

    def plain(v: Any) -> Any:
        if dataclasses.is_dataclass(v) and not isinstance(v, type):
            return plain(dataclasses.asdict(v))
        if isinstance(v, dict):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [plain(x) for x in v]
        if isinstance(v, float) and not math.isfinite(v):
            return None
        return str(v) if isinstance(v, Path) else v

    return json.dumps(plain(value), indent=2) + "\n"
