"""Results kept between calls, so that a stopped analysis goes on where it was."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from apart_fast.files import atomic_write
from apart_fast.runs.json_files import is_file, reading

T = TypeVar("T")
_SEAL = "sha256"
_DAMAGED = object()


class ResultCache:
    """A JSON file of results by key; every `put` writes it whole or not at all.

    Each result has a checksum. What is damaged counts as missing, and a line says so; results of older versions, which
    have no checksum, are taken as they are.

    Args:
        path: the file; made with its folder at the first `put`.

    Raises:
        UserError: it may not be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._values: dict[str, object] = {}
        if is_file(path):
            with reading(path):
                data = path.read_bytes()
            kept = _entries(data)
            self._values = {key: value for key, value in kept.items() if value is not _DAMAGED}
            if not kept or len(kept) > len(self._values):
                warnings.warn(f"{path} is damaged: what is not sound in it is measured again", stacklevel=2)

    def get(self, key: str) -> object | None:
        """The value kept under `key`, or None."""
        return self._values.get(key)

    def put(self, key: str, value: object) -> None:
        """Keep `value` (of plain JSON types) under `key`.

        Raises:
            UserError: full disk, or a folder that cannot be written.
        """
        self._values[key] = value
        sealed = {key: {_SEAL: _checksum(key, value), "value": value} for key, value in self._values.items()}
        atomic_write(self.path, json.dumps(sealed))

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


def _checksum(key: str, value: object) -> str:
    return hashlib.sha256(json.dumps([key, value], sort_keys=True).encode()).hexdigest()[:16]


def _entries(data: bytes) -> dict[str, object]:
    """The results in a file by key, `_DAMAGED` for those that are not what was kept; none where it is no such file."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return {key: _unsealed(key, value) for key, value in values.items()} if isinstance(values, dict) else {}


def _unsealed(key: str, value: object) -> object:
    if not isinstance(value, dict) or _SEAL not in value:
        return value
    return value["value"] if value[_SEAL] == _checksum(key, value.get("value")) else _DAMAGED


def result_key(weights: Path, settings: dict) -> str:
    """Key of what is measured on a checkpoint: sha256 of its bytes and of `settings` (of plain JSON types).

    Raises:
        UserError: it may not be read.
    """
    with reading(weights):
        digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
