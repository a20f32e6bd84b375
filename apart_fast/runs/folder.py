"""The folder of a run: configuration, environment, metrics, TensorBoard events, checkpoints, pictures, summary."""

import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import atomic_create, atomic_write, check_held, expanded, remove_abandoned, telling, to_json
from apart_fast.process.owning import owned
from apart_fast.runs.config import TrainConfig, from_json
from apart_fast.runs.environment import environment
from apart_fast.runs.json_files import Object, Record, Summary, is_file, parse, read_json, reading, short

LAST_EPOCH = 10**9  # no run has more
MADE = (  # what a run writes, apart from TensorBoard's files, whose names are new each time
    *("config.json", "environment.json", "metrics.jsonl", "last.pt", "last.previous.pt", "best.pt", "weights", "ranks"),
    *("log.json", "summary.json", "curves.png", "perturbations.png", "card.json", "report.html"),
)


class RunFolder:
    """Paths and records of one run.

    Attributes:
        path: the folder; `last`, the one before it (`previous`), and `best` are its checkpoints.
    """

    def __init__(self, path: Path):
        self.path = path
        self.last, self.previous, self.best = path / "last.pt", path / "last.previous.pt", path / "best.pt"
        self._metrics = path / "metrics.jsonl"

    def weights(self, epoch: int) -> Path:
        """Where the weights after `epoch` (from 1) lie, if they are kept."""
        return self.path / "weights" / f"epoch-{epoch:04d}.pt"

    def kept_weights(self) -> dict[int, Path]:
        """epoch (from 1) -> file, in order, for the epochs whose weights were kept.

        Raises:
            UserError: their folder may not be read.
        """
        folder = self.path / "weights"
        if not folder.is_dir():
            return {}
        with reading(folder):
            files = {file.stem.removeprefix("epoch-"): file for file in folder.iterdir() if file.match("epoch-*.pt")}
        return dict(sorted((int(epoch), file) for epoch, file in files.items() if epoch.isdecimal()))

    def finished(self) -> bool:
        """Whether the run has ended."""
        return is_file(self.path / "summary.json")

    def summary(self) -> dict:
        """What the run wrote when it ended.

        Raises:
            UserError: it has not ended, or its summary is damaged.
        """
        if not self.finished():
            raise UserError(f"the run in {self.path} is not finished: go on with train.py --resume {self.path}")
        return read_json(self.path / "summary.json", Summary, f"run train.py --resume {self.path} again")

    @classmethod
    def choose(cls, config: TrainConfig) -> "RunFolder":
        """The folder of a new run; nothing is written yet.

        Raises:
            UserError: it already holds a run, or files that a run would replace.
        """
        now = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 10**6 % 1000:03}"  # runs may start together
        data = re.sub(r"[^\w.-]+", "-", config.dataset)  # hf:owner/name
        path = config.out or Path("runs") / f"{data}-{config.method}-{now}"
        if is_file(path / "config.json"):
            raise UserError(f"{path} already holds a run: go on with --resume {path}, or choose another --out")
        taken = next((name for name in MADE if os.path.lexists(path / name)), None)
        if taken is not None:
            raise UserError(f"{path} holds {taken}, which a run would replace: choose another --out")
        return cls(path)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Within: this process alone trains here, and what killed ones have left is removed (see `owning.owned`).

        Raises:
            UserError: another process trains here, or the folder cannot be written.
        """
        with owned(self.path):
            for folder in (self.path, self.path / "weights"):
                remove_abandoned(folder)
            yield

    def create(self, config: TrainConfig) -> None:
        """Write the configuration and environment that make the folder a run.

        Raises:
            UserError: it cannot be written, or another process has made it a run since `choose`.
        """
        try:
            atomic_create(self.path / "config.json", to_json(config))  # makes the folder a run
        except FileExistsError as error:
            raise UserError(f"another run has begun in {self.path}: choose another --out") from error
        self.complete()

    def complete(self) -> None:
        """Write the environment, unless it is there: a process may be killed before it could.

        Raises:
            UserError: it cannot be written.
        """
        if not (self.path / "environment.json").exists():
            self.write("environment.json", environment())

    @classmethod
    def open(cls, path: Path) -> tuple["RunFolder", TrainConfig]:
        """An existing folder and its configuration.

        Raises:
            UserError: no run there, or a damaged configuration.
        """
        path = expanded(path)
        file = path / "config.json"
        if not is_file(file):
            raise UserError(f"no run in {path} (no config.json): name the folder of a run")
        advice = "start a new run"
        try:
            return cls(path), from_json(read_json(file, Object, advice))
        except ValueError as error:
            raise UserError(f"{file} is damaged or of another version ({short(error)}): {advice}") from error

    def put_last(self, newest: Path) -> None:
        """Let the checkpoint that a run goes on from take the place of a last.pt that is damaged or missing."""
        if newest != self.last and newest.exists():
            with telling(self.last):
                os.replace(newest, self.last)

    def append(self, record: dict) -> None:
        """Add a line to metrics.jsonl.

        Raises:
            UserError: no space left, or the folder is gone.
        """
        check_held(self._metrics)
        with telling(self._metrics), open(self._metrics, "a") as file:
            file.write(json.dumps(json.loads(to_json(record))) + "\n")

    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl; an unfinished last line is left out, and others that are damaged with a warning.

        Raises:
            UserError: it may not be read.
        """
        if not is_file(self._metrics):
            return []
        with reading(self._metrics):
            lines = self._metrics.read_bytes().splitlines(keepends=True)
        found = []
        for number, line in enumerate(lines, 1):
            try:
                record = parse(line, Record)
                if type(record.get("epoch")) is not int or not 1 <= record["epoch"] <= LAST_EPOCH:
                    raise ValueError("no epoch")
                found.append(record)
            except ValueError as error:
                if line.endswith(b"\n"):  # else a process was killed while it wrote
                    words = f"line {number} of {self._metrics} is damaged ({short(error)}): it is left out"
                    warnings.warn(words, stacklevel=2)
        return found

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of epochs after `epoch` (from 1): a resumed run writes them again."""
        kept = [line for line in self.metrics() if line["epoch"] <= epoch]
        atomic_write(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, name: str, value: object) -> Path:
        """Write JSON under `name` in the folder."""
        atomic_write(self.path / name, to_json(value))
        return self.path / name
