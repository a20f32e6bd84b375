"""What each of several ranks keeps of a training: its rows of omega, its BatchNorm statistics and random state.

They lie in `ranks/<name>/<rank>.pt` of the run's folder. last.pt, which is written when all of them are there, says the
name; rows are kept by the example's place in the training set, so that other numbers of ranks can go on.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from apart_fast.errors import UserError
from apart_fast.files import telling
from apart_fast.runs import checkpoint
from apart_fast.runs.json_files import is_file
from apart_fast.runs.states import unfit_rank

FOLDER, KIND = "ranks", "rank"
PATIENCE = 600.0  # seconds in which all ranks have written theirs
LOOK, GRACE = 1.0, 5.0  # seconds: between looks whether another rank ends, and what is left to the others then


class Unwritten(UserError):
    """A rank has not written its part."""


def path_of(folder: Path, name: str, rank: int) -> Path:
    """The file of a rank in the run's `folder`."""
    return folder / FOLDER / name / f"{rank}.pt"


def save(path: Path, state: dict) -> None:
    """Write the state of a rank whole or not at all.

    Raises:
        UserError: no space left, or no right to write.
    """
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, state)


def wait_for(folder: Path, name: str, size: int, ended: Callable[[], bool] = lambda: False) -> None:
    """Until all ranks have written theirs.

    Args:
        ended: whether a rank has ended; soon afterwards the wait is over.

    Raises:
        Unwritten: they have not.
    """
    now = looked = time.monotonic()
    deadline = now + PATIENCE
    missing = [path_of(folder, name, rank) for rank in range(size)]
    while missing := [path for path in missing if not path.exists()]:
        if now > deadline:
            raise Unwritten(f"{missing[0]} was not written by its rank: the checkpoint before stays")
        time.sleep(0.02)
        now = time.monotonic()
        if now - looked > LOOK:
            looked = now
            deadline = min(deadline, now + GRACE) if ended() else deadline


def others(folder: Path, kept: set[str]) -> list[Path]:
    """What is there now of names other than `kept`."""
    return [path for path in (folder / FOLDER).glob("*") if path.name not in kept]


def remove(paths: list[Path]) -> None:
    """Remove what no checkpoint names."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def read_rank(folder: Path, record: dict, rank: int) -> dict:
    """What a rank had kept.

    Raises:
        UserError: missing or damaged.
    """
    path = path_of(folder, record["name"], rank)
    if not is_file(path):
        raise checkpoint.Damaged(f"{path} is missing, a part of the checkpoint in {folder}: bring it back")
    state = checkpoint.read(path)
    if (wrong := unfit_rank(state)) is not None:
        raise checkpoint.Damaged(f"{path} is damaged or of another version ({wrong}): use another checkpoint")
    return state


def whole(folder: Path, state: dict) -> None:
    """Refuse a training's state of which a rank's part is not there or damaged.

    Raises:
        Damaged: it is.
    """
    record = state.get("ranks", {"size": 0})
    for rank in range(record["size"]):
        read_rank(folder, record, rank)


def read_rows(folder: Path, record: dict, examples: Tensor) -> Tensor:
    """Rows of omega of the training set's `examples` (int64 [n], ascending), whoever held them, [n, ...].

    Raises:
        UserError: a rank's file is missing or damaged, or an example is in none.
    """
    rows: Tensor | None = None
    found = torch.zeros(len(examples), dtype=torch.bool)
    for rank in range(record["size"]):
        state = read_rank(folder, record, rank)
        memory, theirs = state["memory"], state["examples"]
        if memory is None:
            continue
        place = torch.searchsorted(theirs, examples).clamp_(max=max(0, len(theirs) - 1))
        mine = theirs[place] == examples if len(theirs) else found & False
        if rows is None:
            rows = memory.new_empty(len(examples), *memory.shape[1:])
        for part in mine.nonzero().squeeze(1).split(4096):  # the file may be mapped, and larger than the memory
            rows[part] = memory[place[part]]
        found |= mine
    if rows is None or not bool(found.all()):
        raise UserError(f"{folder / FOLDER / record['name']} lacks examples of the training set: start a new run")
    return rows
