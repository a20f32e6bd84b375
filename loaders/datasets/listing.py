"""What lies in a folder of images: every entry is a class, a picture, or refused by name."""

import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from apart_fast.errors import UserError

# kinds of pictures, as far as Pillow reads them here
_KINDS = "png jpg jpeg jpe jfif webp bmp dib tif tiff gif avif ppm pgm pbm pnm".split()
# what file managers leave behind, besides hidden files
_LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Pictures:
    """The pictures of a class, not opened yet: as little of each as is needed, for there may be millions.

    Attributes:
        folder: where they lie.
        names: of the files, in order.
        sizes, times: bytes of each and when it was changed (ns).
    """

    folder: str
    names: list[str]
    sizes: array
    times: array

    def __len__(self) -> int:
        return len(self.names)

    def paths(self) -> Iterator[str]:
        """Of the files, in order."""
        return (os.path.join(self.folder, name) for name in self.names)


@cache
def suffixes() -> frozenset[str]:
    """Of the pictures that can be read here: ".png", ..."""
    return frozenset(f".{kind}" for kind in _KINDS) & Image.registered_extensions().keys()


def shown(path: str | os.PathLike) -> str:
    """A path for a message: on one line, and printable whatever its bytes are."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_pictures(folder: Path) -> dict[str, Pictures]:
    """Name of each class folder in `folder` -> its pictures, both sorted by name.

    Hidden entries and what file managers leave behind (Thumbs.db, ...) are passed over.

    Raises:
        UserError: there is no such folder, a class is empty or cannot be read, or something is neither class nor
            picture (the first such thing is named).
    """
    try:
        there = stat.S_ISDIR(os.stat(folder).st_mode)
    except OSError as error:
        there = False
        if os.path.lexists(folder):
            raise _unreadable("the folder", folder, error) from error
    if not there:
        raise UserError(
            f"there is no folder {shown(folder)}: put the images into {shown(folder)}/<class>/ ({_kinds()}), "
            "or name the folder that holds train/ and test/ with --data-dir"
        )
    labels, beside = [], []
    for entry in _entries(folder, "the folder"):
        try:
            status = entry.stat()
        except OSError as error:
            raise _unreadable("the class folder", entry.path, error) from error
        if stat.S_ISDIR(status.st_mode):
            labels.append((entry, status))
        else:
            beside.append(entry)
    if beside:
        raise UserError(
            f"{shown(beside[0].path)} lies beside the class folders ({_count(beside)} there): put pictures into "
            f"{shown(folder)}/<class>/, and other files elsewhere"
        )
    if not labels:
        raise UserError(f"{shown(folder)} holds no class folders: put the images into {shown(folder)}/<class>/")
    seen: dict[tuple[int, int], os.DirEntry] = {}
    for entry, status in labels:
        first = seen.setdefault((status.st_dev, status.st_ino), entry)
        if first is not entry:
            raise UserError(
                f"{shown(first.path)} and {shown(entry.path)} are the same folder: remove the link that is not a class"
            )
    return {entry.name: _pictures(entry) for entry, _ in labels}


def _pictures(label: os.DirEntry) -> Pictures:
    files, strays = Pictures(label.path, [], array("q"), array("q")), []
    for entry in _entries(label.path, "the class folder"):
        try:
            status = entry.stat()
        except OSError as error:
            raise UserError(
                f"{shown(entry.path)} cannot be read ({error.strerror}): replace it or remove it"
            ) from error
        if stat.S_ISDIR(status.st_mode):
            raise UserError(
                f"{shown(entry.path)} is a folder within a class: put its pictures into {shown(label.path)} itself, "
                "or remove it"
            )
        if not stat.S_ISREG(status.st_mode):
            kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "no file")
            raise UserError(f"{shown(entry.path)} is {kind}, which cannot be read as an image: remove it")
        if os.path.splitext(entry.name)[1].lower() in suffixes():
            files.names.append(entry.name)
            files.sizes.append(status.st_size)
            files.times.append(status.st_mtime_ns)
        else:
            strays.append(entry)
    if strays:
        raise UserError(
            f"{shown(strays[0].path)} is no picture that can be read here ({_count(strays)} in its folder; {_kinds()} "
            "can): convert it, or remove it"
        )
    if not files:
        raise UserError(f"class folder {shown(label.path)} holds no png, jpg or webp: add images or remove the folder")
    return files


def _entries(folder: str | Path, what: str) -> list[os.DirEntry]:
    """What lies in `folder`, sorted by name, without what nobody has put there on purpose."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(what, folder, error) from error
    return [entry for entry in found if not entry.name.startswith(".") and entry.name.lower() not in _LITTER]


def _unreadable(what: str, path: str | Path, error: OSError) -> UserError:
    reason = f"a link that leads nowhere: {error.strerror}" if os.path.islink(path) else error.strerror
    return UserError(f"{what} {shown(path)} cannot be read ({reason}): mend it or remove it")


def _count(entries: list[os.DirEntry]) -> str:
    return "1 such file" if len(entries) == 1 else f"{len(entries)} such files"


def _kinds() -> str:
    return ", ".join(kind for kind in _KINDS if f".{kind}" in suffixes())
