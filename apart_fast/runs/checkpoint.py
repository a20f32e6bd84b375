"""Checkpoints: written aside and renamed; read where all of their checksums are right, with `weights_only=True`."""

import errno
import mmap
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, BinaryIO, cast

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.files import atomic_path
from apart_fast.loaders import Dataset
from apart_fast.loaders.datasets.classes import OtherClasses, match_classes
from apart_fast.loaders.datasets.table import KNOWN
from apart_fast.models import build_model
from apart_fast.models.channels_last import any_layout
from apart_fast.runs.begin import find_checkpoint
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import is_file, reading
from apart_fast.runs.schema import misfit
from apart_fast.runs.states import FORMAT, Ours, Pictured, unfit, unsound

MAPPED_FROM = 2**31  # bytes
_NOT_OF_THE_FILE = {  # errno of what says nothing of its contents
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENXIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT),
}


class Damaged(UserError):
    """A checkpoint that does not hold what a run writes."""


def save(path: str | os.PathLike, state: dict) -> None:
    """Write `state` (tensors, numbers, text, lists and dicts of them) whole or not at all, with checksums.

    The last.pt of a run that is there so far stays as last.previous.pt; at each moment one of the two is whole.

    Raises:
        UserError: no space left, or no right to write; an existing file stays as it was.
    """
    checksums = torch.serialization.get_crc32_options()
    folder = RunFolder(Path(path).parent)
    previous = folder.previous if Path(path) == folder.last else None
    with atomic_path(path, previous) as temporary, open(temporary, "wb") as file:
        watched = _Watched(file)
        torch.serialization.set_crc32_options(True)
        try:
            torch.save({"format": FORMAT, **state}, cast(IO[bytes], watched))
        except RuntimeError as error:
            raise watched.error or error from error
        finally:
            torch.serialization.set_crc32_options(checksums)


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


def read(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict:
    """The dictionary in a file that `save` has written, whose checksums are right and whose tensors are `unsound` in
    nothing; what is in it is not looked at further.

    All of the file is read twice, the second time from the system's cache: about twice as long as torch alone needs.

    Raises:
        Damaged: it is not.
        UserError: missing, may not be read, or too large for the memory.
    """
    path = find_checkpoint(Path(path))
    try:
        checked = _compare_checksums(path)
        # mapped, a store as large as the memory is copied in parts; read at once, damage shows at once
        mapped = path.stat().st_size > MAPPED_FROM
        # shared: the system refuses a private map of more than it could hold
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED) if mapped else nullcontext():
            state = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
        wrong = unsound(state) if isinstance(state, dict) else "it is no dictionary"
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(f"checkpoint {path} does not fit into the memory: free some") from error
    except Exception as error:  # zip, pickle and torch each have their own
        if isinstance(error, OSError) and error.errno in _NOT_OF_THE_FILE:
            with reading(path):
                raise
        raise Damaged(f"checkpoint {path} is damaged or not a checkpoint: use another one") from error
    if wrong is not None:
        raise Damaged(f"checkpoint {path} is damaged or not a checkpoint ({wrong}): use another one")
    if not checked:
        warnings.warn(f"{path} was written without checksums: damage to it would not be noticed", stacklevel=3)
    return state


def load(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict:
    """Read a checkpoint of a network or of a whole training.

    Raises:
        Damaged: damaged, or not one of ours.
        UserError: see `read`.
    """
    state = read(path, map_location)
    if type(version := state.get("format")) is int and version > FORMAT:  # no damage: what is there must stay
        raise UserError(f"{path} is of a later version (format {version}, this one reads {FORMAT}): update apart_fast")
    if misfit(state, Ours) is not None:
        raise Damaged(f"{path} is not a checkpoint of this program (format {FORMAT}): use another one")
    if (wrong := unfit(state)) is not None:
        raise Damaged(f"checkpoint {path} is damaged or of another version ({wrong}): use another one")
    return state


def load_last(
    folder: RunFolder, check: Callable[[Path, dict], None] = lambda path, state: None
) -> tuple[dict | None, Path]:
    """(state, file) of the newest checkpoint of a run that is whole: last.pt, or the one before it; a line says when it
    is that. The state is None where there is none yet.

    Args:
        check: called with the folder and the state; raises Damaged where more belongs to it than the file.

    Raises:
        UserError: both are damaged, may not be read, or are no files.
    """
    damage = None
    if _is_there(folder.last):
        try:
            state = load(folder.last)
            check(folder.path, state)
            return state, folder.last
        except Damaged as error:
            damage = error
    if not _is_there(folder.previous):
        if damage is not None:
            raise damage
        return None, folder.last  # killed before the first checkpoint
    try:
        state = load(folder.previous)
        check(folder.path, state)
    except Damaged as error:
        raise UserError(f"{damage or error}; {folder.previous}, the one before it, is damaged too") from error
    missing = f"{folder.last} is missing"
    reason = missing if damage is None else str(damage).rpartition(": ")[0]
    warnings.warn(f"{reason}: going on from the checkpoint before it, {folder.previous.name}", stacklevel=2)
    return state, folder.previous


def load_best(folder: RunFolder, map_location: str | torch.device = "cpu") -> dict | None:
    """The state of best.pt; None: it is not there.

    Raises:
        UserError: as `load`; the line says how the run can go on without it.
    """
    if not _is_there(folder.best):
        return None
    try:
        return load(folder.best, map_location)
    except Damaged as error:
        reason = str(error).rpartition(": ")[0]
        raise UserError(f"{reason}: remove it, and the weights judged next, or the last, take its place") from error


def _is_there(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        UserError: there is something else, such as a link that leads nowhere: it would be taken for no checkpoint.
    """
    if is_file(path):
        return True
    if os.path.lexists(path):
        raise UserError(f"{path} is no file, or a link that leads to none: bring the file back, or remove it")
    return False


def _compare_checksums(path: Path) -> bool:
    """Whether the file has checksums.

    Raises:
        Exception: one of them is wrong, or the file is not what `save` writes.
    """
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
        # what is said of them has no checksum: called a folder, one would be read as whatever lies in the memory
        if len({_said_of(entry) for entry in archive.infolist()}) > 1:
            raise zipfile.BadZipFile("its entries are not alike")
        for entry in entries:
            if entry.external_attr or entry.compress_type or entry.compress_size != entry.file_size:
                raise zipfile.BadZipFile(f"{entry.filename} is not a plain file")
        if not any(entry.CRC for entry in entries):
            return False  # torch was told to write none
        for entry in entries:
            with archive.open(entry) as stream:
                while stream.read(2**20):  # compares at the end
                    pass
    return True


def _said_of(entry: zipfile.ZipInfo) -> tuple:
    """What the directory of the archive says of each entry alike."""
    versions = entry.create_version, entry.create_system, entry.extract_version
    return *versions, entry.volume, entry.internal_attr, entry.external_attr, entry.date_time, entry.comment


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
    if (wrong := misfit(description, Pictured)) is not None or not isinstance(description, dict):
        raise UserError(f"{what} does not say what network it is ({wrong}): use another one")
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


def weights_of(state: dict, average: bool = True) -> dict[str, Tensor]:
    """The weights in a checkpoint; `average`: the averaged ones where there are some."""
    return (average and state.get("average")) or state["model"]


def load_model(model: nn.Module, weights: dict, path: str | os.PathLike) -> None:
    """Load weights into a model, all or nothing.

    Raises:
        UserError: the checkpoint is of another model; the line names the first difference.
    """
    check_alike(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def check_alike(mine: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Refuse saved tensors that differ from `mine` in names, shapes or dtypes.

    Raises:
        UserError: the line names the first difference.
    """
    for name in [*mine, *saved]:
        if name not in mine or name not in saved:
            where = "the checkpoint" if name in saved else "the model"
            raise UserError(f"{path} is of another model: {name} is only in {where}; choose the model it was made with")
        there, here = saved[name], mine[name]
        if there.shape != here.shape:
            raise UserError(
                f"{path} is of another model: {name} is {tuple(there.shape)} there and {tuple(here.shape)} here; "
                "choose the model (and width) it was made with"
            )
        if there.dtype != here.dtype:
            raise UserError(
                f"{path} does not fit: {name} is {there.dtype} there and {here.dtype} here; use another checkpoint"
            )


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
    description, weights = source["description"], weights_of(source, average)
    model = build_model(**description).to(device).to(memory_format=torch.channels_last)
    load_model(model, weights, name)
    pixels = torch.zeros(2, *description["image_size"], description["in_channels"], device=device)
    return any_layout(model.eval(), pixels.permute(0, 3, 1, 2))
