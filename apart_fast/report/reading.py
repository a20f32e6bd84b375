"""What the page shows of a run, read from its folder."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import read_object
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: of the folder, unique among the runs read together.
        records: lines of metrics.jsonl, one for each epoch.
        environment, evaluation, card: the JSON files of that name; empty where there is none.
        picture: perturbations.png, if there is one.
    """

    name: str
    config: TrainConfig
    summary: dict
    records: list[dict]
    environment: dict
    evaluation: dict
    card: dict
    picture: bytes | None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Raises:
        UserError: none, one of them twice, not a run, unfinished or damaged.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise UserError("no runs: name one or more run folders")
    whole = [path.resolve() for path in paths]
    for path, count in Counter(whole).items():
        if count > 1:
            raise UserError(f"{path} is named {count} times: name each run once")
    unique = len({path.name for path in whole}) == len(whole)
    return [
        _read(path, full.name if unique else str(path)) for path, full in zip(paths, whole, strict=True)
    ]  # same folder name in different places: their paths tell them apart


def _read(path: Path, name: str) -> Run:
    folder, config = RunFolder.open(path)
    summary = folder.summary()  # refuses an unfinished run
    picture = path / "perturbations.png"
    return Run(
        name=name,
        config=config,
        summary=summary,
        records=folder.metrics(),
        environment=_optional(path / "environment.json"),
        evaluation=_optional(path / "evaluation.json"),
        card=_optional(path / "card.json"),
        picture=picture.read_bytes() if picture.is_file() else None,
    )


def _optional(file: Path) -> dict:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    return read_object(file, "make it again, or remove it") if file.is_file() else {}
