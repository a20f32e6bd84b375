"""Whether what a file holds is what the program writes there.

What is expected is said by types, as annotations are: numbers, text, `None`, `Literal`, unions, lists, tuples,
dictionaries, dataclasses (for objects that hold nothing else), `TypedDict` (for those that may) and `Annotated` with
rules.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

_WORDS = {
    NoneType: "nothing",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Of `Annotated`: what is wrong with a value that has the right type, such as "is too large"; None: nothing."""

    wrong: Callable[[Any], str | None]


def between(low: float, high: float) -> Rule:
    """The rule that a number is not outside of these bounds."""
    return Rule(lambda value: None if low <= value <= high else f"is {value:.6g}, not within {low:.6g} to {high:.6g}")


def misfit(value: object, kind: Any, name: str = "") -> str | None:
    """What of `value` is not of the `kind`, in words that begin with its place in it; None: nothing.

    Args:
        name: of the value itself, which the places within follow; "" for a whole file.
    """
    origin = get_origin(kind) or kind
    if kind is Any or kind is object:
        return None
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _of_object(value, kind, name)
    if origin in _PARTS:
        return _PARTS[origin](value, get_args(kind), name)
    return None if _is(value, kind) else _instead(value, name, _word(kind))


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    if kind in (int, bool, NoneType):
        return type(value) is kind
    return isinstance(value, str if kind is Path else kind)


def _of_annotated(value: object, args: tuple, name: str) -> str | None:
    inner, *rules = args
    if (wrong := misfit(value, inner, name)) is not None:
        return wrong
    found = (rule.wrong(value) for rule in rules if isinstance(rule, Rule))
    wrong = next((words for words in found if words is not None), None)
    return wrong and f"{_called(name)} {wrong}"


def _of_union(value: object, args: tuple, name: str) -> str | None:
    if any(misfit(value, kind) is None for kind in args):
        return None
    rest = [kind for kind in args if kind is not NoneType]
    if len(rest) == 1 and value is not None:
        return misfit(value, rest[0], name)
    return _instead(value, name, " or ".join(map(_word, args)))


def _of_literal(value: object, args: tuple, name: str) -> str | None:
    if any(type(value) is type(known) and value == known for known in args):
        return None
    return _instead(value, name, f"one of {', '.join(map(str, args))}")


def _of_list(value: object, args: tuple, name: str) -> str | None:
    if not isinstance(value, list):
        return _instead(value, name, "a list")
    return _first(misfit(item, args[0], f"{name}[{i}]") for i, item in enumerate(value))


def _of_tuple(value: object, args: tuple, name: str) -> str | None:
    """JSON has lists for them."""
    if not isinstance(value, list | tuple):
        return _instead(value, name, "a list")
    kinds = [args[0]] * len(value) if args[1:] == (...,) else list(args)
    if len(kinds) != len(value):
        return f"{_called(name)} has {len(value)} entries instead of {len(kinds)}"
    return _first(misfit(item, kind, f"{name}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _of_dict(value: object, args: tuple, name: str) -> str | None:
    if not isinstance(value, dict):
        return _instead(value, name, "an object")
    wrong_key = next((key for key in value if not isinstance(key, args[0])), None)
    if wrong_key is not None:
        return f"{_called(name)} has {wrong_key!r} among its names"
    return _first(misfit(item, args[1], _join(name, key)) for key, item in value.items())


def _of_object(value: object, kind: Any, name: str) -> str | None:
    if not isinstance(value, dict):
        return _instead(value, name, "an object")
    kinds, required = _entries(kind)
    missing = next((key for key in kinds if key in required and key not in value), None)
    if missing is not None:
        return f"{_join(name, missing)} is missing"
    unknown = next((key for key in value if key not in kinds), None)
    if unknown is not None and not is_typeddict(kind):
        return f"{_join(name, unknown)} is not known"
    return _first(misfit(value[key], inner, _join(name, key)) for key, inner in kinds.items() if key in value)


_PARTS: dict[Any, Callable[[object, tuple, str], str | None]] = {
    Annotated: _of_annotated,
    Literal: _of_literal,
    Union: _of_union,
    UnionType: _of_union,
    list: _of_list,
    tuple: _of_tuple,
    dict: _of_dict,
    NotRequired: lambda value, args, name: misfit(value, args[0], name),
    Required: lambda value, args, name: misfit(value, args[0], name),
}


@cache
def _entries(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """(name -> kind, the names that must be there) of a dataclass or TypedDict."""
    kinds = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        return kinds, kind.__required_keys__
    free = (dataclasses.MISSING, dataclasses.MISSING)
    return kinds, frozenset(f.name for f in dataclasses.fields(kind) if (f.default, f.default_factory) == free)


def _first(found: Any) -> str | None:
    return next((words for words in found if words is not None), None)


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _called(name: str) -> str:
    return name or "it"


def _word(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin is Annotated:
        return _word(get_args(kind)[0])
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return "an object"
    return _WORDS.get(origin) or f"a {getattr(origin, '__name__', str(origin)).lower()}"


def _instead(value: object, name: str, expected: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{_called(name)} is not finite"
    found = next((_WORDS[kind] for kind in type(value).__mro__ if kind in _WORDS), f"a {type(value).__name__.lower()}")
    return f"{_called(name)} is {found} instead of {expected}"
