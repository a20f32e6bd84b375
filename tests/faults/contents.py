"""What lies in files and folders: bits of checkpoints, records, leftovers."""

import hashlib
import json
import os
import re
import stat
from pathlib import Path

CLOCK = {"seconds", "images_per_second", "train_seconds", "joules", "epoch_seconds", "date", "command", "commit"}
MADE_BY_DATE = re.compile(r"tensorboard/.*|report\.html|.*\.png")
LEFTOVER = re.compile(r".*\.tmp|.*\.tmp\..*|\.apart_fast\.fetching-.*|\..*\.part")


def digests(file: str) -> dict[str, str] | None:
    """name -> digest of every tensor, number and text in a checkpoint; None where torch cannot read it.

    Plain torch, nothing of the package: what the package would refuse is read too.
    """
    import torch

    found: dict[str, str] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            kind = f"{value.dtype} {tuple(value.shape)} "
            found[name] = kind + hashlib.sha256(data).hexdigest()[:16]
        elif isinstance(value, dict | list | tuple):
            found[name] = f"{type(value).__name__} {len(value)}"
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                walk(item, f"{name}.{key}")
        else:
            found[name] = repr(value)

    try:
        walk(torch.load(file, map_location="cpu", weights_only=True), "")
    except Exception:
        return None
    return found


def difference(one: dict | None, other: dict | None) -> str | None:
    """The first name under which two digests, or two JSON values, differ; None if nothing but clocks does."""
    if one is None or other is None:
        return None if one is other else "cannot be read"
    for name in sorted({*one, *other}):
        if name.rpartition(".")[2] in CLOCK:
            continue
        first, second = one.get(name), other.get(name)
        if isinstance(first, dict) and isinstance(second, dict):
            if (inner := difference(first, second)) is not None:
                return f"{name}.{inner}"
        elif first != second:
            return name
    return None


def rows(file: Path) -> list[dict]:
    """The lines of metrics.jsonl; ValueError for one that is not whole."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def half_written(folder: Path) -> str | None:
    """The first JSON file under `folder` that is not whole."""
    for file in filter(Path.is_file, [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]):
        try:
            rows(file) if file.suffix == ".jsonl" else json.loads(file.read_text())
        except (ValueError, RecursionError):
            return file.name
    return None


def leftovers(*folders: Path) -> list[str]:
    """Names of temporary files and folders."""
    return [path.name for folder in folders for path in folder.rglob("*") if LEFTOVER.fullmatch(path.name)]


def names(folder: Path) -> set[str]:
    """Files under `folder`, those whose names tell the time left out."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("tensorboard/")}


def snapshot(folder: Path) -> dict[str, str]:
    """relative path -> kind and content of all that lies under `folder`, links not followed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            status = path.lstat()
            text = f"{stat.S_IFMT(status.st_mode):o}"
            if stat.S_ISREG(status.st_mode):
                text += f" {status.st_size} "
                large = status.st_size > 2**20
                text += (
                    f"{status.st_ino} {status.st_mtime_ns}" if large else hashlib.sha256(path.read_bytes()).hexdigest()
                )
            elif stat.S_ISLNK(status.st_mode):
                text += os.readlink(path)
            found[os.fsdecode(os.path.relpath(path, folder))] = text
    return found


def written(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What differs between two snapshots; whole files in a data folder's `.apart_fast` are allowed."""
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return [name for name in changed if ".apart_fast" not in Path(name).parts or LEFTOVER.fullmatch(Path(name).name)]
