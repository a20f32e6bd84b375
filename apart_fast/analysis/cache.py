"""Results kept between calls, so that a stopped analysis goes on where it was."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from apart_fast.files import atomic_write

T = TypeVar("T")


class ResultCache:
    """A JSON file of results by key; missing or damaged, it starts empty. Every `put` writes it whole or not at all.

    Args:
        path: the file; made with its folder at the first `put`.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError):
            values = None
        self._values: dict[str, object] = values if isinstance(values, dict) else {}

    def get(self, key: str) -> object | None:
        """The value kept under `key`, or None."""
        return self._values.get(key)

    def put(self, key: str, value: object) -> None:
        """Keep `value` (of plain JSON types) under `key`.

        Raises:
            UserError: full disk, or a folder that cannot be written.
        """
        self._values[key] = value
        atomic_write(self.path, json.dumps(self._values))

    def get_or_make(self, key: str, valid: Callable[[object], bool], make: Callable[[], T]) -> T:
        """What is kept under `key` if it is `valid` (a file may be damaged), else what `make` gives, kept from now on.

        Raises:
            UserError: see `put`.
        """
        value: Any = self.get(key)
        if not valid(value):
            value = make()
            self.put(key, value)
        return value


def result_key(weights: Path, settings: dict) -> str:
    """Key of what is measured on a checkpoint: sha256 of its bytes and of `settings` (of plain JSON types)."""
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
