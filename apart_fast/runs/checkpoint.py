"""Checkpoints: written aside and renamed, loaded with `weights_only=True`."""

import mmap
import os
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, BinaryIO, cast

import torch
from torch import nn

from apart_fast.errors import UserError
from apart_fast.files import atomic_path
from apart_fast.loaders import Dataset
from apart_fast.loaders.datasets.classes import OtherClasses, match_classes
from apart_fast.loaders.datasets.table import KNOWN
from apart_fast.models import build_model
from apart_fast.models.channels_last import any_layout
from apart_fast.runs.begin import find_checkpoint

FORMAT = 1
MAPPED_FROM = 2**31  # bytes


def save(path: str | os.PathLike, state: dict) -> None:
    """Write `state` (tensors, numbers, text, lists and dicts of them) whole or not at all.

    Raises:
        UserError: no space left, or no right to write; an existing file stays as it was.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        watched = _Watched(file)
        try:
            torch.save({"format": FORMAT, **state}, cast(IO[bytes], watched))
        except RuntimeError as error:
            raise watched.error or error from error


class _Watched:
    """A file that remembers why a write failed: torch's writer turns a full disk into a RuntimeError of its own."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None
        self.flush = file.flush

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def load(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict:
    """Read a checkpoint.

    Raises:
        UserError: missing, damaged, not one of ours, or too large for the memory.
    """
    path = find_checkpoint(Path(path))
    try:
        # mapped, a store as large as the memory is copied in parts; read at once, damage shows at once
        mapped = path.stat().st_size > MAPPED_FROM
        # shared: the system refuses a private map of more than it could hold
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED) if mapped else nullcontext():
            state = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(f"checkpoint {path} does not fit into the memory: free some") from error
    except Exception as error:  # zip, pickle and torch each have their own
        raise UserError(f"checkpoint {path} is damaged or not a checkpoint: use another one") from error
    if (
        not isinstance(state, dict)
        or state.get("format") != FORMAT
        or not {"model", "description", "dataset"} <= set(state)
    ):
        raise UserError(f"{path} is not a checkpoint of this program (format {FORMAT}): use another one")
    return state


def check_data(
    description: object, data: Dataset, name: str, what: str | os.PathLike, classes: object = None
) -> Dataset:
    """Refuse a network for other data; `data` with the labels that the network knows its classes by.

    Args:
        description: arguments of `build_model`, as checkpoints and summaries keep them.
        data: what it is to be judged on; `name`: of that data set.
        what: the checkpoint or run, for the message.
        classes: the names of the network's classes, as checkpoints keep them; None: not known, so not compared.

    Raises:
        UserError: other classes, or images of another shape.
    """
    keys = ("num_classes", "image_size", "in_channels")
    if not isinstance(description, dict) or not all(key in description for key in keys):
        raise UserError(f"{what} does not say what network it is: use another one")
    if len(data.classes) != description["num_classes"]:
        raise UserError(
            f"{what} knows {description['num_classes']} classes, {name} has {len(data.classes)}: "
            "choose the data set it was trained on"
        )
    shape, known = list(data.test.images.shape[1:]), [*description["image_size"], description["in_channels"]]
    if shape != known:
        raise UserError(
            f"{what} knows images of {known} (height, width, channels), {name} has {shape}: "
            "choose the data set it was trained on"
        )
    if not isinstance(classes, list) or not all(isinstance(label, str) for label in classes):
        return data
    try:
        places = match_classes(classes, data.classes, numbers=data.name in KNOWN)
    except OtherClasses as error:
        raise UserError(
            f"{what} knows other classes than {name} ({error}): choose the data set it was trained on"
        ) from error
    if places == sorted(places):
        return data
    warnings.warn(f"{name} has the classes of {what} in another order: they are matched by name", stacklevel=2)
    labels = torch.tensor(places).argsort()  # of a class of the data, in the network
    train, test = (replace(split, labels=labels[split.labels]) for split in (data.train, data.test))
    return replace(data, train=train, test=test, classes=[data.classes[place] for place in places])


def load_model(model: nn.Module, weights: dict, path: str | os.PathLike) -> None:
    """Load weights into a model, all or nothing.

    Raises:
        UserError: the checkpoint is of another model; the line names the first difference.
    """
    mine = model.state_dict()
    for name in [*mine, *weights]:
        if name not in mine or name not in weights:
            where = "the checkpoint" if name in weights else "the model"
            raise UserError(f"{path} is of another model: {name} is only in {where}; choose the model it was made with")
        if mine[name].shape != weights[name].shape:
            raise UserError(
                f"{path} is of another model: {name} is {tuple(weights[name].shape)} there and "
                f"{tuple(mine[name].shape)} here; choose the model (and width) it was made with"
            )
    model.load_state_dict(weights)


def load_network(
    source: str | os.PathLike | dict,
    device: torch.device,
    average: bool = True,
    *,
    name: str | os.PathLike = "the checkpoint",
) -> nn.Module:
    """The network of a checkpoint on `device`, in eval mode, channels-last; it takes pixels of any layout.

    Args:
        source: a file, or what `load` has read of it.
        average: take the averaged weights where there are some.
        name: what messages call a checkpoint that is given as its state.

    Raises:
        UserError: see `load` and `load_model`.
    """
    if not isinstance(source, dict):
        name, source = source, load(source)
    description = source["description"]
    model = build_model(**description).to(device).to(memory_format=torch.channels_last)
    load_model(model, (average and source.get("average")) or source["model"], name)
    pixels = torch.zeros(2, *description["image_size"], description["in_channels"], device=device)
    return any_layout(model.eval(), pixels.permute(0, 3, 1, 2))
