"""Checkpoints with an entry that no training writes; called in a process that has torch."""

import os
from collections.abc import Callable
from typing import Any

import torch


def _like(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.zeros(3)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "None": lambda v: None,
    "text": lambda v: "x",
    "-1": lambda v: -1,
    "1e30": lambda v: 1e30,
    "2**70": lambda v: 2**70,
    "list": lambda v: [],
    "dict": lambda v: {},
    "nan tensor": lambda v: torch.full_like(_like(v), float("nan"), dtype=torch.float32),
    "empty tensor": lambda v: torch.zeros(0),
    "float64 tensor": lambda v: _like(v).double(),
    "integer tensor": lambda v: torch.ones_like(_like(v), dtype=torch.int64),
    "sparse tensor": lambda v: torch.eye(3).to_sparse(),
    "large tensor": lambda v: torch.zeros(1).expand(10**6),
    "one more dimension": lambda v: _like(v)[None],
}


def change(file: str, key: str, how: str) -> bool:
    """Change an entry of a checkpoint ("apart.memory" is one within another), and save it as torch does."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    outer, _, inner = key.partition(".")
    holder: Any = state[outer] if inner else state
    name: Any = int(inner) if isinstance(holder, list) else inner or outer
    if how == "missing":
        holder.pop(name)
    elif how == "unknown key beside it":
        if isinstance(holder, list):
            holder.append(1)
        else:
            holder["surprise"] = 1
    else:
        holder[name] = CHANGES[how](holder[name])
    os.unlink(file)  # others may be linked to it
    torch.save(state, file)
    return True
