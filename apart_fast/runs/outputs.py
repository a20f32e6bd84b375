"""Where a command writes: never onto what it reads, nor onto a file of another kind."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from apart_fast.errors import UserError
from apart_fast.files import check_writable
from apart_fast.runs.json_files import LARGEST, Object, parse, reading


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: with its article.
        known: whether a file's bytes may be replaced by one of this kind.
    """

    name: str
    known: Callable[[bytes], bool]


def _object_with(*names: str | tuple[str, ...]) -> Callable[[bytes], bool]:
    """Whether it is a JSON object with all of these entries; of several in parentheses one is enough."""

    def known(data: bytes) -> bool:
        try:
            value = parse(data, Object)
        except ValueError:
            return False
        return all(any(one in value for one in ((name,) if isinstance(name, str) else name)) for name in names)

    return known


EVALUATION = Kind("an evaluation", _object_with("attacks", "eps", "environment"))
NUMBERS = Kind("the numbers of an analysis", _object_with("dataset", "eps", ("runs", "run"), "environment"))
PAGE = Kind("a report", lambda data: data.startswith(b"<!doctype html>") and b"Training report" in data)
PNG = Kind("a picture", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"))
SVG = Kind("a picture", lambda data: b"<svg" in data[:4096])


def check_output(path: Path, kind: Kind, read: Sequence[Path] = ()) -> None:
    """Refuse a place where a file of this kind must not be written, or cannot be, before hours of work go into one.

    Args:
        read: files that the command reads.

    Raises:
        UserError: it is one of these, something of another kind lies there, or it cannot be written.
    """
    with reading(path):
        there = os.path.lexists(path)
        if there and any(_same(path, file) for file in read):
            raise UserError(f"{path} is read by this command and would be replaced: name another file with --out")
        if there and not path.is_dir() and path.exists():
            if not path.is_file():
                raise UserError(f"{path} is no regular file: name another with --out")
            data = path.read_bytes() if path.stat().st_size <= LARGEST else b"\0"
            if data and not kind.known(data):
                raise UserError(f"{path} holds something other than {kind.name}: name another file with --out")
    check_writable(path)


def _same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
