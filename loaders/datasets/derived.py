"""Files derived from the data: in one folder, written whole or not at all, and looked at before they are used again."""

import errno
import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apart_fast.errors import UserError
from apart_fast.files import NO_ROOM, atomic_path, atomic_write, expanded, remove_abandoned
from apart_fast.loaders.datasets.fingerprints import digest

FOLDER = ".apart_fast"  # beside the data
FLAG = "name another folder for derived files with --cache-dir"
READ_ANEW = 2**30  # bytes of a file up to which all of it is read and compared at every start
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}

Note = dict[str, Any]


class Damaged(UserError):
    """A derived file is not what was written."""


def folder_for(root: Path, cache: str | os.PathLike | None) -> Path:
    """Where what is derived from the data in `root` goes: `cache`, or a folder within `root`; leftovers of killed
    processes are removed from it."""
    folder = root / FOLDER if cache is None else expanded(Path(cache))
    remove_abandoned(folder)
    return folder


def provide(
    path: Path, write: Callable[[Path], Note], look: Callable[[Path, Note, bool], bool], *, rewrite: bool
) -> Note:
    """Have `write` make the file at `path`, unless a sound one is there; returns its note.

    The note lies in `path` + ".json"; a file without one was not finished, and is written again. Where another process
    is writing into the folder it is waited for.

    Args:
        write: writes the file to the path it gets, and returns what is to be noted of it.
        look: whether a file still is what its note says, and whether it is to be read for that: files of more than
            `READ_ANEW` bytes are not, until their times or their place change.
        rewrite: a damaged file is written again.

    Raises:
        Damaged: a damaged file, without `rewrite`.
        UserError: no space is left, or the folder cannot be written.
    """
    if (note := _found(path, look, rewrite)) is not None:
        return note
    failed: UserError | None = None
    seen = _trace(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            remove_abandoned(path.parent)
            if _trace(path) != seen and (note := _found(path, look, rewrite)) is not None:  # that process wrote it
                return note
            with atomic_path(path) as temporary:
                try:
                    note = write(temporary)
                except UserError as error:
                    failed = error
                    raise
            note = {"bytes": path.stat().st_size, **note, "stamp": _stamp(path.stat())}
            atomic_write(_note(path), _sealed(note))
            return note
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if error is failed or isinstance(error, Damaged) or not isinstance(cause, OSError):
            raise
        # of `atomic_path`, whose advice gives way to one that names the flag
        said = f"cannot write {path} ({cause.strerror})"
        if isinstance(error, UserError):
            said = str(error).rpartition(": ")[0]
        raise UserError(f"{said}: {'free some space, or ' * (cause.errno in NO_ROOM)}{FLAG}") from cause


def at_hand(path: Path) -> bool:
    """Whether `provide` has just read all of the file: it lies in the system's cache."""
    return path.stat().st_size <= READ_ANEW


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse what the disk has no room for, before hours are spent on it.

    Raises:
        UserError: it has not.
    """
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{what} need {needed / 1e9:.3g} GB in {folder}, where {free / 1e9:.3g} GB are free: "
                f"free some space, or {FLAG}"
            )


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _trace(path: Path) -> tuple[int, int] | None:
    """Tells one note of a file from the next."""
    try:
        status = _note(path).stat()
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None


def _found(path: Path, look: Callable[[Path, Note, bool], bool], rewrite: bool) -> Note | None:
    """The note of the file, if both are there and sound."""
    try:
        if not (path.is_file() and _note(path).is_file()):
            return None
        note = _unsealed(_note(path).read_text())
        status = path.stat()
        if status.st_size != note["bytes"]:
            raise ValueError("another length")
        known = status.st_size > READ_ANEW and note.get("stamp") == _stamp(status)
        if not look(path, note, not known):
            raise ValueError("another content")
    except PermissionError as error:  # of another user: nothing is wrong with it
        raise UserError(f"{path} may not be read ({error.strerror}): {FLAG}") from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
        if rewrite:
            return None
        raise Damaged(f"{path} is damaged: delete it and run again") from error
    if note.get("stamp") != _stamp(status):  # copied, or of an older version
        with suppress(UserError, OSError):
            atomic_write(_note(path), _sealed({**note, "stamp": _stamp(status)}))
    return note


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sealed(note: Note) -> str:
    """A note with a checksum of its own."""
    seal = digest(json.dumps(note, sort_keys=True).encode())
    return json.dumps({**note, "seal": seal}) + "\n"


def _unsealed(text: str) -> Note:
    note = json.loads(text)
    if not isinstance(note, dict):
        raise ValueError("not an object")
    seal = note.pop("seal", None)
    if seal is not None and seal != digest(json.dumps(note, sort_keys=True).encode()):
        raise ValueError("the note itself is damaged")
    return note


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within: no other process writes derived files there, where the file system knows locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                warnings.warn(f"another process writes to {folder}: waiting for it", stacklevel=4)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
