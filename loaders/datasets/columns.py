"""Which columns of a Hugging Face data set hold pictures and labels, and what the labels are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from apart_fast.errors import UserError
from apart_fast.loaders.datasets.classes import OtherClasses, match_classes

_WORDS = ("string", "large_string", "bool")  # types of labels, besides integers
_UNKNOWN = -1  # what the hub has for labels that are kept secret

Features = Mapping[str, Any]  # name of a column -> its type, as `datasets` has them


class Labels(NamedTuple):
    """Labels as numbers.

    Attributes:
        names: of the classes, in the order of the numbers.
        parts: int64 [N] of each part.
    """

    names: list[str]
    parts: list[np.ndarray]


def find_images(features: Features, wanted: str | None, name: str) -> str:
    """The column of pictures: the one that is wanted, or the only one of such a type; `name`: of the data set.

    Raises:
        UserError: there is none, or more than one, or the wanted one holds none.
    """
    if wanted is not None:
        kind = _wanted(features, wanted, name, "--image-column")
        if not _holds_images(kind) and _type(kind) not in ("binary", "large_binary"):
            raise UserError(
                f"--image-column {wanted} of {name} holds {_said(kind)}, not pictures: name one of type Image, or with "
                "the bytes of picture files"
            )
        return wanted
    found = [column for column, kind in features.items() if _holds_images(kind)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name} has several columns of pictures ({', '.join(found)}): name one with --image-column")
    raise UserError(f"{name} has no column of type Image ({_all(features)}): name one with --image-column")


def find_labels(features: Features, wanted: str | None, image: str, name: str) -> str:
    """The column of labels: the one that is wanted, the only one with names of classes, or else the only one of
    integers or words.

    Raises:
        UserError: there is none, or more than one, or the wanted one holds something else.
    """
    if wanted is not None:
        kind = _wanted(features, wanted, name, "--label-column")
        if not (_has_names(kind) or _is_plain(kind)):
            several = "several labels for a picture" if _is_list(kind) else "no classes"
            raise UserError(
                f"--label-column {wanted} of {name} holds {_said(kind)}, {several}: name one of class names, integers "
                "or words"
            )
        return wanted
    others = {column: kind for column, kind in features.items() if column != image}
    for fits in (_has_names, _is_plain):
        found = [column for column, kind in others.items() if fits(kind)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{name} has several columns that may hold labels ({', '.join(found)}): name one with --label-column"
            )
    lists = [column for column, kind in others.items() if _is_list(kind)]
    if lists:
        raise UserError(
            f"{name} has several labels for a picture ({', '.join(lists)}), and a network here gives one: make a "
            "column with one label of each"
        )
    raise UserError(f"{name} has no labels ({_all(features)}): take a data set with a column of them")


def of_class_names(name: str, column: str, values: Mapping[str, Sequence[Any]], known: Mapping[str, Any]) -> Labels:
    """Labels of a type that names its classes.

    Args:
        values, known: the labels, and the names of the classes, of each part.

    Raises:
        UserError: a label is missing, or the parts have different classes.
    """
    (_, names), *_ = known.items()
    parts = []
    for part, labels in values.items():
        numbers = np.array([_UNKNOWN if label is None else label for label in labels], dtype=np.int64)
        if not len(numbers):
            raise UserError(f"{name} has no pictures in its {part} split: name another one with --{part}-split")
        wrong = np.flatnonzero((numbers < 0) | (numbers >= len(names)))
        if len(wrong):
            raise _unlabelled(name, part, column, int(wrong[0]), labels[wrong[0]], len(wrong))
        try:
            places = match_classes(known[part], names)
        except OtherClasses as error:
            raise UserError(
                f"{name} has other classes in its {part} split ({error}): name splits of the same classes"
            ) from error
        parts.append(np.array(places, dtype=np.int64)[numbers])
    return Labels(list(names), parts)


def of_values(name: str, column: str, values: Mapping[str, Sequence[Any]]) -> Labels:
    """Integers or words as labels: the classes are what is there, in order.

    Raises:
        UserError: a label is missing, or a class is in only one of the parts.
    """
    found: dict[str, set[Any]] = {}
    for part, labels in values.items():
        if not len(labels):
            raise UserError(f"{name} has no pictures in its {part} split: name another one with --{part}-split")
        odd = [i for i, label in enumerate(labels) if label is None or label == "" or label == _UNKNOWN]
        if odd:
            raise _unlabelled(name, part, column, odd[0], labels[odd[0]], len(odd))
        found[part] = set(labels)
    first, *others = found.values()
    if len(first) > len(values["train"]) // 2:
        raise UserError(
            f"column {column!r} of {name} has {len(first)} different values in {len(values['train'])} rows, which are "
            "no classes: name another one with --label-column"
        )
    for other in others:
        if first != other:
            raise UserError(
                f"class {min(first ^ other)!r} is in only one of train and test of {name}: both need the same classes"
            )
    classes = sorted(first)
    place = {value: i for i, value in enumerate(classes)}
    return Labels(
        [str(value) for value in classes],
        [np.array([place[label] for label in labels], dtype=np.int64) for labels in values.values()],
    )


def _unlabelled(name: str, part: str, column: str, row: int, label: object, count: int) -> UserError:
    said = "no label" if label is None or label == "" else f"the label {label}, which is no class"
    more = f" ({count} such rows)" if count > 1 else ""
    return UserError(
        f"row {row} of {part} of {name} has {said}{more}, in column {column!r}: name a split with labels with "
        f"--{part}-split, or another column with --label-column"
    )


def _wanted(features: Features, column: str, name: str, flag: str) -> Any:
    if column not in features:
        raise UserError(f"{flag} {column} is no column of {name}: choose one of {', '.join(features)}")
    return features[column]


def _type(kind: Any) -> str:
    return str(getattr(kind, "dtype", ""))


def _holds_images(kind: Any) -> bool:
    """Also the pairs of bytes and path that files have which were not written by `datasets`."""
    pair = isinstance(kind, dict) and kind.keys() == {"bytes", "path"} and _type(kind["bytes"]) == "binary"
    return pair or type(kind).__name__ == "Image"


def _has_names(kind: Any) -> bool:
    return type(kind).__name__ == "ClassLabel" and bool(kind.names)


def _is_plain(kind: Any) -> bool:
    numbers = type(kind).__name__ in ("Value", "ClassLabel") and "int" in _type(kind)
    return numbers or (type(kind).__name__ == "Value" and _type(kind) in _WORDS)


def _is_list(kind: Any) -> bool:
    return isinstance(kind, list) or type(kind).__name__ in ("List", "LargeList", "Sequence")


def _said(kind: Any) -> str:
    """A type in a word: ClassLabel, int64, List."""
    plain = type(kind).__name__ == "Value"
    return _type(kind) if plain else "a structure" if isinstance(kind, dict) else type(kind).__name__


def _all(features: Features) -> str:
    return ", ".join(f"{column}: {_said(kind)}" for column, kind in features.items())
