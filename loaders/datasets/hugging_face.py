"""Data sets of Hugging Face, from the hub or from a folder of parquet files, through their package `datasets`."""

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apart_fast.errors import UserError
from apart_fast.files import expanded
from apart_fast.loaders.datasets.columns import Labels, find_images, find_labels, of_class_names, of_values
from apart_fast.loaders.datasets.converting import convert, key_of, pictures
from apart_fast.loaders.datasets.fetch import reason
from apart_fast.loaders.datasets.fingerprints import digest
from apart_fast.loaders.datasets.listing import shown
from apart_fast.loaders.datasets.picture import Encoded
from apart_fast.loaders.datasets.reading import Reading
from apart_fast.loaders.datasets.splits import Dataset

_ROWS = 64  # that are read at a time
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes


@dataclass(frozen=True)
class _Part:
    """A split. `table` gives the part of it that is one column, as datasets' own object."""

    features: dict[str, Any]
    table: Callable[[str], Any]


@dataclass(frozen=True)
class _Found:
    """Splits by name, and the files that hold them."""

    parts: dict[str, _Part]
    files: list[Path]


def load_hugging_face(
    root: Path, *, download: bool, progress: bool, cache: Path | None, reading: Reading, address: str | None = None
) -> Dataset:
    """Load the splits train and test of a data set of Hugging Face, or those that `reading` names.

    Args:
        root: where the parquet files lie; for a set of the hub: whose `.apart_fast` the decoded images go to.
        download: whether it may be fetched.
        address: NAME or NAME:CONFIGURATION on the hub, or a folder of parquet files. None: those in `root`.

    Raises:
        UserError: `datasets` is missing, there is no such set, column or split, it has no labels, or several for a
            picture; or see `convert`.
    """
    spec = find_spec("datasets")
    if spec is None or spec.origin is None:
        raise UserError("Hugging Face's data sets are read by their package: pip install 'apart_fast[hf]'")
    if address is not None and not address:
        raise UserError("--dataset hf: names no data set: write hf:NAME, or hf:FOLDER with parquet files")
    name = "hf" if address is None else f"hf:{address}"
    folder = root if address is None else _as_folder(address)
    with _quiet(progress):
        if folder is None:
            assert address is not None
            found = _of_hub(name, address, download)
        else:
            root, found = folder, _of_folder(name, folder)
        parts = {
            part: _choose(found, name, part, wanted)
            for part, wanted in (("train", reading.train_split), ("test", reading.test_split))
        }
        _say_what_is_odd(name, found, list(parts.values()))
        first, other = parts.values()
        image = find_images(first.features, reading.image_column, name)
        label = find_labels(first.features, reading.label_column, image, name)
        for column in (image, label):
            if column not in other.features:
                raise UserError(f"{name} has no column {column!r} in its test split: name splits with the same columns")
        labels = _labels(name, parts, label)

    def files() -> Iterator[str | Encoded]:
        with _quiet(progress), _told(name):
            for part, rows in parts.items():
                yield from _encoded(rows, image, f"{part} of {name}")

    stamps = [(path, path.stat()) for path in found.files]
    pieces = [f"{os.path.relpath(path, root)}\0{s.st_size}\0{s.st_mtime_ns}\n".encode() for path, s in stamps]
    asked = (image, label, reading.train_split, reading.test_split)
    key = key_of([*pieces, repr(asked).encode(), digest(*labels.parts).encode()], reading.resizing)
    size = sum(status.st_size for _, status in stamps)
    source = pictures(key, sum(map(len, labels.parts)), size, files, reading.resizing)
    slug = re.sub(r"[^\w.-]+", "-", name)
    train, test = convert(source, labels.parts, root, name=slug, cache=cache, progress=progress)
    return Dataset(name, train, test, labels.names, flip=True)


def _as_folder(address: str) -> Path | None:
    """The folder that is meant; None: a name on the hub."""
    path = expanded(Path(address))
    if path.is_dir():
        return path
    if address[0] in "/.~":
        raise UserError(f"there is no folder {shown(path)}: name one with parquet files, or a data set of the hub")
    return None


def _of_folder(name: str, folder: Path) -> _Found:
    import datasets

    if any((folder / file).is_file() for file in _SAVED):
        with _told(name):
            found = datasets.load_from_disk(str(folder))
        if not isinstance(found, datasets.DatasetDict):
            raise UserError(f"{shown(folder)} holds one split, not train and test: save a DatasetDict of both")
        return _of_arrow(found)
    files = sorted(path for path in folder.rglob("*.parquet") if _is_visible(path.relative_to(folder)))
    if not files:
        raise UserError(
            f"there are no parquet files in {shown(folder)}: put train-*.parquet and test-*.parquet there, or name a "
            "data set of the hub with --dataset hf:NAME"
        )

    def opened(**options: Any) -> Any:
        with tempfile.TemporaryDirectory() as temporary:  # for its locks; what is streamed is not copied
            return datasets.load_dataset(str(folder), streaming=True, cache_dir=temporary, **options)

    with _told(name):
        splits = opened()
        features = {split: _features(name, part) for split, part in splits.items()}

    def table_of(split: str) -> Callable[[str], Any]:
        return lambda column: opened(columns=[column])[split]

    return _Found({split: _Part(known, table_of(split)) for split, known in features.items()}, files)


def _of_hub(name: str, address: str, download: bool) -> _Found:
    import datasets

    path, _, configuration = address.partition(":")
    with _told(name), nullcontext() if download else _offline():
        found = datasets.load_dataset(path, configuration or None)
    return _of_arrow(found)


@contextmanager
def _offline() -> Iterator[None]:
    """Within: what is not in the hub's cache is not asked for."""
    import datasets
    from huggingface_hub import constants

    places: tuple[Any, ...] = (datasets.config, constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _of_arrow(found: Any) -> _Found:
    files = sorted({Path(file["filename"]) for part in found.values() for file in part.cache_files})

    def table_of(part: Any) -> Callable[[str], Any]:
        return lambda column: part.select_columns([column])

    return _Found({split: _Part(dict(part.features), table_of(part)) for split, part in found.items()}, files)


def _features(name: str, part: Any) -> dict[str, Any]:
    if part.features is None:
        raise UserError(f"{name} does not say what its columns hold: write its parquet files anew")
    return dict(part.features)


def _choose(found: _Found, name: str, part: str, wanted: str | None) -> _Part:
    split = wanted or part
    if split in found.parts:
        return found.parts[split]
    there = ", ".join(found.parts)
    if len(found.parts) == 1 and part == "test":
        raise UserError(
            f"{name} has one split ({there}) and nothing to judge on: make two of it with train_test_split of "
            "datasets, and name the folder they are saved in"
        )
    raise UserError(f"{name} has no split {split!r} (it has {there}): name one with --{part}-split")


def _say_what_is_odd(name: str, found: _Found, parts: Sequence[_Part]) -> None:
    """A line for what is allowed and may not be meant."""
    if parts[0] is parts[1]:
        warnings.warn(f"train and test of {name} are the same split: testing on training images", stacklevel=3)
    unused = [split for split, part in found.parts.items() if part not in parts]
    if unused:
        warnings.warn(
            f"not used: {' and '.join(unused)} of {name} (validation images are taken from train)", stacklevel=3
        )


def _labels(name: str, parts: dict[str, _Part], column: str) -> Labels:
    with _told(name):
        values = {part: _column(rows.table(column), column) for part, rows in parts.items()}
    kinds = {part: rows.features[column] for part, rows in parts.items()}
    known = {part: getattr(kind, "names", None) for part, kind in kinds.items()}
    return of_class_names(name, column, values, known) if all(known.values()) else of_values(name, column, values)


def _column(table: Any, column: str) -> list[Any]:
    return [value for rows in _rows(table, column, 10_000) for value in rows]


def _rows(table: Any, column: str, count: int) -> Iterable[list[Any]]:
    return (part[column].to_pylist() for part in table.with_format("arrow").iter(batch_size=count))


def _encoded(part: _Part, column: str, where: str) -> Iterator[str | Encoded]:
    """The pictures of a split: their bytes, or where they lie."""
    number = 0
    for values in _rows(part.table(column), column, _ROWS):
        for value in values:
            name = f"row {number} of {where}"
            data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            if data is not None:
                yield Encoded(name, data)
            elif path is not None and os.path.isfile(path):
                yield path
            else:
                what = "holds no picture" if path is None else f"names a file that is not there ({shown(path)})"
                raise UserError(f"{name} {what}: remove the row, or put the picture into it")
            number += 1


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What goes wrong in `datasets`, in a line."""
    import datasets

    try:
        yield
    except UserError:
        raise
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"there is no data set {name.partition(':')[2]} on the Hugging Face hub, or it is not public: look at its "
            "name, owner/name for most"
        ) from error
    except ConnectionError as error:
        raise UserError(
            f"{name} is not here and cannot be fetched ({reason(error)}): connect to the network, or name a folder "
            "with its parquet files"
        ) from error
    except Exception as error:  # of a damaged file or a wrong name it may be almost any
        raise UserError(
            f"{name} cannot be read by datasets ({reason(error)}): look at its files and its name"
        ) from error


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Within: what `datasets` and the hub's client have to say is left to the line that ends the command."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels, hidden = [logger.level for logger in loggers], are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if not progress:
        disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not progress and not hidden:
            enable_progress_bars()
