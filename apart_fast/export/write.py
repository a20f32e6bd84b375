"""An export: written aside, opened and compared, and then put in its place."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from apart_fast.errors import UserError
from apart_fast.export.comparing import Compared, compare
from apart_fast.export.formats import FORMATS, Format
from apart_fast.export.images import find_images
from apart_fast.export.settings import ExportConfig
from apart_fast.export.stored import Stored, read_network
from apart_fast.files import atomic_folder, atomic_path, telling
from apart_fast.runs.outputs import Kind, check_output
from apart_fast.runs.states import EXPORTED


def export_network(config: ExportConfig) -> tuple[Stored, Path, Compared, str]:
    """Write a network; gives it, where it lies now, how it compares, and on what images.

    Raises:
        UserError: it cannot be read, written so, or the place is taken or cannot be written.
    """
    wanted = FORMATS[config.to]
    stored = read_network(config.run)
    out = config.out or stored.file.parent / wanted.name
    check_place(out, wanted, stored.file)
    images, words = find_images(stored, config.data_dir, config.cache_dir, config.images)
    network = stored.network(torch.device("cpu"))
    how: Any = import_module(wanted.module)
    contents: dict[str, bytes] = how.contents(stored, config.licence)
    with _fresh_parents(out), (atomic_folder if wanted.folder else atomic_path)(out) as place:
        with telling(out):
            for name, data in contents.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(data)
        compared = compare(network, lambda: how.reopen(place), images)
    return stored, out, compared, words


def check_place(out: Path, wanted: Format, source: Path) -> None:
    """Refuse to write onto what is read, or onto anything that is not an earlier export.

    Raises:
        UserError: something else lies there, or it cannot be written.
    """
    if not wanted.folder:
        check_output(out, Kind("an exported network", lambda data: EXPORTED.encode() in data), [source])
        return
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already: remove it, or name another folder with --out")
    check_output(out / "README.md", Kind("a card", lambda data: False), [source])


@contextmanager
def _fresh_parents(out: Path) -> Iterator[None]:
    """Folders above `out` that had to be made are removed again where nothing came of it."""
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
