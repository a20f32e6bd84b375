"""Results kept between calls, so that a stopped analysis goes on where it was."""

import hashlib
import json
from pathlib import Path

from apart_fast.files import atomic_write


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


def result_key(weights: Path, settings: dict) -> str:
    """Key of what is measured on a checkpoint: sha256 of its bytes and of `settings` (of plain JSON types)."""
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
