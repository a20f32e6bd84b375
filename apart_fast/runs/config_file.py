"""Settings of a training in a file: YAML written by hand, or the config.json of a run."""

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from apart_fast.errors import UserError
from apart_fast.files import expanded
from apart_fast.runs.config import ALWAYS, OF_ONE_RUN, TrainConfig, typed
from apart_fast.runs.json_files import is_file, reading, short
from apart_fast.runs.schema import misfit

LARGEST = 2**20  # bytes
_SIZES = ("eps", "eval_eps")  # text, so that fractions can be written; a plain number is meant as its text


def read_settings(path: Path) -> dict[str, Any]:
    """name -> value of the settings in a file: `lr: 0.1`, one a line, named like the flags (`batch-size` or
    `batch_size`). Paths in it are relative to the working directory, as in flags.

    Of a run's own config.json what is of that run alone (its folder, `--resume`) is left out.

    Raises:
        UserError: no such file, not YAML, an unknown name, one given twice, or a value of another kind.
    """
    path = expanded(path)
    if not is_file(path):
        if not is_file(path / "config.json"):
            raise UserError(f"no settings at {path}: name a YAML file, or the config.json of a run")
        path = path / "config.json"
    with reading(path):
        data = path.read_bytes() if path.stat().st_size <= LARGEST else None
    try:
        if data is None:
            raise ValueError("it is too large")
        values = _named(_parse(data.decode(), json_text=path.suffix == ".json"))
        if (wrong := misfit(values, TrainConfig)) is not None:
            raise ValueError(wrong)
    except (ValueError, RecursionError) as error:
        reason = short(error) if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{path} holds no settings of a training ({reason}): write lines such as 'lr: 0.1'") from error
    if all(name in values for name in ALWAYS):  # a run's own
        values = {name: value for name, value in values.items() if name not in OF_ONE_RUN}
    return typed(values)


def _parse(text: str, json_text: bool) -> object:
    if json_text:
        return json.loads(text, object_pairs_hook=_once)
    try:
        return yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _named(values: object) -> dict[str, Any]:
    """Settings by the names of their fields."""
    if values is None:
        raise ValueError("it is empty")
    if not isinstance(values, dict):
        raise ValueError(f"it is {'a list' if isinstance(values, list) else 'no list of names and values'}")
    known = [field.name for field in fields(TrainConfig)]
    found = _once((str(name).replace("-", "_"), value) for name, value in values.items())
    for name, value in found.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            nested = ", and settings are not nested" if isinstance(value, dict) else ""
            raise ValueError(f"{name} is not known" + (f", did you mean {close[0]}?" if close else nested))
        if value == "":
            raise ValueError(f"{name} is empty")
    return {
        name: str(value) if name in _SIZES and type(value) in (int, float) else value for name, value in found.items()
    }


def _once(pairs: Any) -> dict:
    found: dict = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    return found


# ---- YAML as 1.2 has it (PyYAML has 1.1, where 1e-3 is text, 010 is 8, `no` is false and 1:30 is 90)


class _Loader(yaml.SafeLoader):
    """Mappings, lists, text, numbers, true, false and null; no name twice in a mapping."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As of SafeLoader, without merges."""
        pairs = [
            (self.construct_object(key, deep=True), self.construct_object(value, deep)) for key, value in node.value
        ]
        for name, _ in pairs:
            if isinstance(name, list | dict):
                raise ValueError("a name is no text")
        return _once(pairs)


def _plain(tag: str, pattern: str, first: str, read: Callable[[str], object]) -> None:
    _Loader.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), list(first))
    _Loader.add_constructor(tag, lambda loader, node: read(loader.construct_scalar(node)))


_plain("tag:yaml.org,2002:bool", "true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true")
_plain("tag:yaml.org,2002:null", "~|null|Null|NULL|", "~nN", lambda text: None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_plain("tag:yaml.org,2002:int", "[-+]?[0-9]+", "-+0123456789", int)
_plain(
    "tag:yaml.org,2002:float",
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
    lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
)
