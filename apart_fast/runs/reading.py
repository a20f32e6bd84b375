"""A run as its folder tells it: what reports, analyses, cards and benchmarks read."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from apart_fast.errors import UserError
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import LARGEST, Evaluation, Object, is_file, read_if_there, reading
from apart_fast.step.methods import get_method


@dataclass(frozen=True)
class Run:
    """A run. Its JSON files beside the summary are read when they are asked for.

    Attributes:
        name: of the folder, unique among the runs read together.
        summary: what the run wrote when it ended; empty where it has not.
        records: lines of metrics.jsonl, one for each epoch.
        weights: epoch (from 1) -> file, in order, of the epochs whose weights were kept.
        finished: whether it has ended.
    """

    name: str
    folder: RunFolder
    config: TrainConfig
    summary: dict
    records: list[dict]
    weights: dict[int, Path]
    finished: bool = True

    @classmethod
    def of(cls, folder: RunFolder, config: TrainConfig, name: str | None = None, *, unfinished: bool = False) -> "Run":
        """The run in `folder`; `name`: None is that of the folder; `unfinished`: whether it may be.

        Raises:
            UserError: unfinished, or its summary is damaged.
        """
        name = folder.path.name if name is None else name
        finished = not unfinished or folder.finished()
        summary = folder.summary() if finished else {}
        return cls(name, folder, config, summary, folder.metrics(), folder.kept_weights(), finished)

    @property
    def method(self) -> str:
        """The full name of its method: pgd is pgd-10."""
        return get_method(self.config.method).name

    @property
    def collapsed_epochs(self) -> list[int]:
        """Epochs (from 1) that the run's own probe called collapsed."""
        return [record["epoch"] for record in self.records if record.get("collapsed")]

    @cached_property
    def environment(self) -> dict:
        """environment.json; empty if there is none. A damaged one is a UserError, here and below."""
        return self._json("environment.json", Object)

    @cached_property
    def evaluation(self) -> dict:
        """evaluation.json, a further evaluation; empty if there is none."""
        return self._json("evaluation.json", Evaluation)

    @cached_property
    def card(self) -> dict:
        """card.json; empty if there is none."""
        return self._json("card.json", Object)

    @cached_property
    def picture(self) -> bytes | None:
        """perturbations.png, if there is one; what is no picture in the run's folder is left out with a warning."""
        file = self.folder.path / "perturbations.png"
        if not is_file(file):
            return None
        with reading(file):
            inside = file.resolve().is_relative_to(file.parent.resolve()) and file.stat().st_size <= LARGEST
            data = file.read_bytes() if inside else b""
        if _is_picture(data):
            return data
        what = "no picture" if inside else "no file in the run's folder"
        warnings.warn(f"{file} is {what}: it is left out", stacklevel=2)
        return None

    def _json(self, name: str, kind: Any) -> dict:
        return read_if_there(self.folder.path / name, kind, "make it again, or remove it") or {}


def read_runs(paths: Sequence[Path], *, unfinished: bool = False) -> list[Run]:
    """The runs in these folders.

    Args:
        unfinished: take those that have not ended as well.

    Raises:
        UserError: none, not a run, unfinished or damaged.
    """
    if not paths:
        raise UserError("no runs: name one or more run folders")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):  # same folder name in different places: their paths tell them apart
        names = [str(path) for path in paths]
    folders = zip(paths, names, strict=True)
    return [Run.of(*RunFolder.open(path), name, unfinished=unfinished) for path, name in folders]


def _is_picture(data: bytes) -> bool:
    """Whether these are the bytes of a whole PNG file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow's, of pictures that are too large
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.load()
    except Exception:  # Pillow has many
        return False
    return True


def points(records: Sequence[dict], key: str) -> list[tuple[int, float]]:
    """(epoch, value) of the lines of metrics.jsonl that hold a number under `key`."""
    return [(r["epoch"], r[key]) for r in records if isinstance(r.get(key), int | float)]
