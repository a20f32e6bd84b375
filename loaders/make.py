"""Every loader of the table as its class, and one of them made."""

from pkgutil import resolve_name
from typing import Any

from apart_fast.errors import UserError
from apart_fast.loaders.base import Loader
from apart_fast.loaders.datasets.splits import Split
from apart_fast.loaders.table import LOADER_CLASSES

LOADERS: dict[str, type[Loader]] = {name: resolve_name(where) for name, where in LOADER_CLASSES.items()}


def make_loader(kind: str, split: Split, **options: Any) -> Loader:
    """Build the loader named `kind` (a key of `LOADERS`); see `Loader` for the options.

    Raises:
        UserError: unknown `kind`, a batch larger than the data, ffcv missing, no space for its file, a damaged file.
    """
    if kind not in LOADERS:
        raise UserError(f"unknown loader {kind!r}: choose one of {', '.join(LOADERS)}")
    return LOADERS[kind](split, **options)
