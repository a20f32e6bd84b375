"""The files of a known data set: found where they lie, unpacked or downloaded."""

import errno
import os
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import lock
from apart_fast.loaders.datasets.table import KnownSet

FETCHING = ".apart_fast.fetching-"  # how names of folders begin into which something is fetched
_TIMEOUT = 10.0  # seconds without an answer after which a download is given up


def find(known: KnownSet, root: Path, *, elsewhere: bool) -> Path | None:
    """The folder that holds any of the files (a half of them is reported as damage, never completed in place).

    Args:
        elsewhere: look where the system keeps them, instead of in `root`.
    """
    places = [place for place in known.places if Path(place).is_absolute() == elsewhere]
    for place in (root / p for p in (places if elsewhere else ["", *places])):
        if any((place / (file + ending)).exists() for file in known.files for ending in ("", ".gz")):
            return place
    return None


def fetch(name: str, known: KnownSet, root: Path, *, download: bool) -> None:
    """Unpack or download the files into a temporary folder, then move them to `root`.

    Raises:
        UserError: `root` cannot be written or is full, the archive there is damaged, or the files cannot be had.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, extract_archive

    maker = getattr(datasets, known.torchvision)
    archive = root / known.archive if known.archive and (root / known.archive).exists() else None
    if archive and not check_integrity(archive, maker.tgz_md5):
        raise UserError(f"{archive} is incomplete or damaged: delete it and run again")
    advice = (
        f"put {known.archive or ' and '.join(known.files)} there, "
        "or the images as train/<class>/*.png and test/<class>/*.png"
    )
    if not archive and not download:
        raise UserError(f"{name} is not in {root}: allow the download, or {advice}")
    timeout = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=FETCHING, dir=root) as temporary, _locked(temporary):
            if archive:
                extract_archive(str(archive), temporary)
            else:
                socket.setdefaulttimeout(_TIMEOUT)
                for part in known.parts:
                    maker(temporary, download=True, **part)
            for file in known.files:
                try:
                    os.replace(Path(temporary, known.inside, file), root / file)
                except OSError as error:  # a folder that another process has just put there
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
    except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError) as error:
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"no space left for {name} in {root}: free some space or choose another folder") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"cannot write to {root} ({reason(error)}): choose a folder that can be written") from error
        raise UserError(f"{name} is not in {root} and cannot be fetched ({reason(error)}): {advice}") from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Within: `remove_abandoned` leaves the folder alone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, folder)
        yield
    finally:
        os.close(handle)


def reason(error: BaseException) -> str:
    """First sentence of an error's text, on one line."""
    return " ".join(str(getattr(error, "reason", error)).split()).split(". ")[0][:160] or type(error).__name__
