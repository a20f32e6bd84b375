"""Names of classes: the same ones in another order or spelling are matched. Imported without torch."""

import re
import unicodedata
from collections.abc import Sequence


class OtherClasses(ValueError):
    """Names that cannot be matched; its text names the first difference."""


def match_classes(found: Sequence[str], wanted: Sequence[str], *, numbers: bool = False) -> list[int]:
    """For each of `found` its place in `wanted`: each place once.

    Names are compared exactly; where these are not the same ones, without regard to case and with ' ', '-', '_' and
    '/' alike.

    Args:
        numbers: the numbers 0, 1, ... stand for the places, too.

    Raises:
        OtherClasses: they are not the same classes.
    """
    if sorted(found) == sorted(wanted):
        return [wanted.index(name) for name in found]
    if numbers and all(name.isascii() and name.isdecimal() for name in found):
        places = [int(name) for name in found]
        if sorted(places) == list(range(len(wanted))):
            return places
    left, right = [_fold(name) for name in found], [_fold(name) for name in wanted]
    if sorted(left) == sorted(right) and len(set(right)) == len(right):
        return [right.index(name) for name in left]
    raise OtherClasses(_difference(found, wanted, left, right))


def _fold(name: str) -> str:
    return re.sub(r"[\s_/-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def _difference(found: Sequence[str], wanted: Sequence[str], left: list[str], right: list[str]) -> str:
    odd = [name for name, folded in zip(found, left, strict=True) if folded not in right]
    missing = [name for name, folded in zip(wanted, right, strict=True) if folded not in left]
    if odd and missing:
        return f"{odd[0]!r} is none of them, and {missing[0]!r} is missing"
    if missing:
        return f"{missing[0]!r} is missing"
    if odd:
        return f"{odd[0]!r} is none of them"
    twice = next(name for name, folded in zip(found, left, strict=True) if left.count(folded) > 1)
    return f"{twice!r} is there twice"
