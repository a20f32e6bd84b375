"""The folder of a run: configuration, environment, metrics, TensorBoard events, checkpoints, pictures, summary."""

import dataclasses
import json
import time
from pathlib import Path

from apart_fast.errors import UserError
from apart_fast.files import atomic_create, atomic_write, read_object, to_json
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.environment import environment


class RunFolder:
    """Paths and records of one run.

    Attributes:
        path: the folder; `last` and `best` are its checkpoints.
    """

    def __init__(self, path: Path):
        self.path = path
        self.last, self.best = path / "last.pt", path / "best.pt"
        self._metrics = path / "metrics.jsonl"

    def weights(self, epoch: int) -> Path:
        """Where the weights after `epoch` (from 1) lie, if they are kept."""
        return self.path / "weights" / f"epoch-{epoch:04d}.pt"

    def kept_weights(self) -> dict[int, Path]:
        """epoch (from 1) -> file, in order, for the epochs whose weights were kept."""
        files = {file.stem.removeprefix("epoch-"): file for file in self.path.glob("weights/epoch-*.pt")}
        return dict(sorted((int(epoch), file) for epoch, file in files.items() if epoch.isdecimal()))

    def summary(self) -> dict:
        """What the run wrote when it ended.

        Raises:
            UserError: it has not ended, or its summary is damaged.
        """
        file = self.path / "summary.json"
        if not file.is_file():
            raise UserError(f"the run in {self.path} is not finished: go on with train.py --resume {self.path}")
        return read_object(file, f"run train.py --resume {self.path} again")

    @classmethod
    def choose(cls, config: TrainConfig) -> "RunFolder":
        """The folder of a new run; nothing is written yet.

        Raises:
            UserError: it already holds a run.
        """
        now = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 10**6 % 1000:03}"  # runs may start together
        path = config.out or Path("runs") / f"{config.dataset}-{config.method}-{now}"
        if (path / "config.json").exists():
            raise UserError(f"{path} already holds a run: go on with --resume {path}, or choose another --out")
        return cls(path)

    def create(self, config: TrainConfig) -> None:
        """Write the configuration and environment that make the folder a run.

        Raises:
            UserError: it cannot be written, or another process has made it a run since `choose`.
        """
        about = to_json(environment())
        try:
            atomic_create(self.path / "config.json", to_json(config))  # makes the folder a run
        except FileExistsError as error:
            raise UserError(f"another run has begun in {self.path}: choose another --out") from error
        atomic_write(self.path / "environment.json", about)

    @classmethod
    def open(cls, path: Path) -> tuple["RunFolder", TrainConfig]:
        """An existing folder and its configuration.

        Raises:
            UserError: no run there, or a damaged configuration.
        """
        file = path / "config.json"
        if not file.is_file():
            raise UserError(f"no run in {path} (no config.json): name the folder of a run")
        try:
            values = json.loads(file.read_text())
            known = {field.name for field in dataclasses.fields(TrainConfig)}
            if values.keys() - known:
                raise ValueError(f"unknown settings {sorted(values.keys() - known)}")
            for name in ("data_dir", "cache_dir", "out", "resume"):
                values[name] = Path(values[name]) if values.get(name) else None
            values["points"] = tuple(values["points"]) if values.get("points") else None
            config = TrainConfig(**values)
            if not isinstance(config.dataset, str) or not isinstance(config.method, str):
                raise ValueError("data set and method must be names")
            config.check()
            return cls(path), config
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is damaged or of another version ({error}): start a new run") from error

    def append(self, record: dict) -> None:
        """Add a line to metrics.jsonl."""
        with open(self._metrics, "a") as file:
            file.write(json.dumps(json.loads(to_json(record))) + "\n")

    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl; an unfinished last line is left out."""
        if not self._metrics.is_file():
            return []
        lines = []
        for line in self._metrics.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "epoch" in record:
                lines.append(record)
        return lines

    def forget_after(self, epoch: int) -> None:
        """Drop the metrics of epochs after `epoch` (from 1): a resumed run writes them again."""
        for leftover in self.path.glob(".*.tmp"):  # of a checkpoint during which the run was killed
            leftover.unlink(missing_ok=True)
        kept = [line for line in self.metrics() if line["epoch"] <= epoch]
        atomic_write(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, name: str, value: object) -> Path:
        """Write JSON under `name` in the folder."""
        atomic_write(self.path / name, to_json(value))
        return self.path / name
