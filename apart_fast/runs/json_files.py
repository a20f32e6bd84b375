"""JSON files of a run: read only where they are what the program writes."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from apart_fast.errors import UserError
from apart_fast.runs.schema import misfit

LARGEST = 2**28  # bytes of a file
DEEPEST = 40  # objects within objects
WHOLE = 2**63  # no whole number is larger
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}

# ---- what the files hold


class Result(TypedDict):
    """What was found under one attack; None: it was not finite."""

    accuracy: NotRequired[float | None]
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    correct: NotRequired[int]
    n: NotRequired[int]


class Judged(TypedDict):
    """A report of `evaluate`."""

    n: NotRequired[int]
    eps: NotRequired[float]
    restarts: NotRequired[int]
    attacks: NotRequired[dict[str, Result]]


class Evaluation(Judged):
    """evaluation.json; `weights`: the digest of those that were judged."""

    checkpoint: NotRequired[str]
    weights: NotRequired[str]
    dataset: NotRequired[str]
    environment: NotRequired[dict[str, Any]]


class Best(TypedDict):
    """Which weights are the best."""

    epoch: NotRequired[int]
    by: NotRequired[str]
    accuracy: NotRequired[float | None]


class Tests(TypedDict):
    """The test at the end."""

    last: NotRequired[Judged]
    best: NotRequired[Judged]


class Summary(TypedDict):
    """summary.json; every entry may be missing, as in those of other versions."""

    dataset: NotRequired[str]
    method: NotRequired[str]
    model: NotRequired[dict[str, Any]]
    epochs: NotRequired[int]
    train_seconds: NotRequired[float]
    best: NotRequired[Best]
    collapsed_at: NotRequired[list[int]]
    final: NotRequired[dict[str, Any]]
    parameters: NotRequired[int]
    memory_bytes: NotRequired[int]
    peak_gpu_bytes: NotRequired[int]
    test: NotRequired[Tests]


Record = dict[str, float | bool | list[float | None] | None]  # a line of metrics.jsonl
Object = dict[str, Any]


# ---- reading


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Within, errors of reading from `path` become a line.

    Raises:
        UserError: it may not be read, or cannot be.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FORBIDDEN:
            raise UserError(
                f"{path} may not be read ({error.strerror}): change its permissions, or those of a folder above it"
            ) from error
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): look at the disk or the network"
        ) from error


def is_file(path: Path) -> bool:
    """Whether a regular file is there (or a link to one).

    Raises:
        UserError: a folder above it may not be looked into.
    """
    with reading(path):
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except OSError as error:
            if error.errno in _NOTHING:
                return False
            raise
        except ValueError:  # a name with a zero in it
            return False


def read_json(path: Path, kind: Any, advice: str) -> Any:
    """The value in a JSON file.

    Args:
        kind: what it has to be (see `apart_fast.runs.schema`).

    Raises:
        UserError: it may not be read, or holds something else; then the message ends with `advice`.
    """
    with reading(path):
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is damaged (it is too large): {advice}")
        data = path.read_bytes()
    try:
        return parse(data, kind)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({short(error)}): {advice}") from error


def read_if_there(path: Path, kind: Any, advice: str) -> Any | None:
    """Like `read_json`; None if there is no such file."""
    return read_json(path, kind, advice) if is_file(path) else None


def parse(data: bytes, kind: Any) -> Any:
    """The value in JSON text.

    Raises:
        ValueError: it is none, is not of the `kind`, holds numbers that are too large, or is nested too deeply.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if _depth(value) > DEEPEST:
        raise ValueError("nested too deeply")
    if (wrong := misfit(value, kind)) is not None:
        raise ValueError(wrong)
    return value


def _constant(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > WHOLE:
        raise ValueError("a whole number is too large")
    return int(text)


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level, depth = [item for items in inner for item in items], depth + 1
    return depth


def short(error: ValueError) -> str:
    """What it says, in no more than a line."""
    text = str(error)
    return text if len(text) <= 200 else f"{text[:200]}..."
