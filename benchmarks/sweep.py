"""Many runs with shared settings: where they lie, which have ended, training what is missing, keeping their records.

`methods.py`, `time_to_accuracy.py` and `strong.py` say which runs there are (`Sweep`). Each run has its folder, so that
one benchmark can take those of another. Finished work is not repeated, and an unfinished run goes on where it was.
"""

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from apart_fast.analysis import output
from apart_fast.errors import Stopped, UserError
from apart_fast.files import check_writable
from apart_fast.runs.config import MOVABLE, TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.reading import Run
from apart_fast.step.methods import get_method
from apart_fast.training.run import train
from apart_fast.units import Bounds, check_number

REFERENCE = "pgd-10"  # whose step the others are compared with
# settings that do not change what is judged, so that a run made with others is still the run asked for
FREE = {
    *MOVABLE,
    *("recipe", "config", "dry_run", "out", "resume", "threads", "keep_weights", "checkpoint_every"),
    *("log", "log_every", "val_every", "test"),
}
COUNTS = {"val_every"}  # of these, where validation chooses the weights
KEPT = (
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "summary.json",
    "card.json",
    "validation.json",
    "evaluation.json",
    "judged.json",
)


@dataclass
class Sweep:
    """What every sweep is told. A run has a name (a method, or settings) and a seed."""

    data_dir: Path = Path("data")
    """Where the data lies, or is downloaded to."""
    recipe: str = "small"
    """Settings that all runs share: small (CPU), paper, ..."""
    amp: bool = False
    """Train in bfloat16."""
    device: str | None = None
    """cuda, cpu, ... None: a GPU if there is one."""
    threads: int | None = None
    """CPU threads of torch. None: as torch chooses."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train each with."""
    runs: Path | None = None
    """Folder of the runs. None: runs/methods-<recipe>, or runs/time-<recipe> for the time to accuracy."""
    out: Path | None = None
    """Folder of what is worth keeping. None: benchmarks/results/<methods, strong or time>-<recipe>."""

    def place(self, runs: str, out: str) -> None:
        """Let the folders that are not given be those of the recipe with these beginnings."""
        self.runs = self.runs or Path("runs") / f"{runs}-{self.recipe}"
        self.out = self.out or Path("benchmarks/results") / f"{out}-{self.recipe}"

    def settings(self, name: str, seed: int, **given: Any) -> TrainConfig:
        """Those of a run, with what is `given` beside what all runs share."""
        shared = dict(data_dir=self.data_dir, amp=self.amp, device=self.device, threads=self.threads)
        return TrainConfig.of(self.recipe, **shared, seed=seed, out=self.folder(name, seed), **given)

    def wanted(self, name: str, seed: int) -> TrainConfig:
        """The settings of a run."""
        raise NotImplementedError

    def folder(self, name: str, seed: int) -> Path:
        """Where a run lies."""
        assert self.runs is not None
        return self.runs / f"{name}-{seed}"

    def all_runs(self) -> list[tuple[str, int]]:
        """(name, seed) of every run, in the order in which they are trained."""
        raise NotImplementedError

    def check_out(self) -> None:
        """Refuse an `out` whose files would fall on runs, or that cannot be written, before hours of work.

        Raises:
            UserError: it is that of the runs or of a run, or cannot be written.
        """
        assert self.out is not None and self.runs is not None
        if self.out.resolve() == self.runs.resolve():
            raise UserError(f"--out {self.out} is the folder of the runs: choose another --out")
        output.check_folder(self.out)
        check_writable(self.out / "table.json")


def check_list(flag: str, given: Sequence, known: Sequence[str] = (), least: int = 1) -> None:
    """Refuse what is not among `known` (if given), something twice, or fewer than `least`.

    Raises:
        UserError: one line with the flag and what it takes.
    """
    if unknown := [one for one in given if known and one not in known]:
        raise UserError(f"{flag} {' '.join(unknown)}: choose from {', '.join(known)}")
    if len(given) < least or len(set(given)) < len(given):
        wanted = f"at least {least}, and each once" if least else "each once"
        raise UserError(f"{flag} {' '.join(map(str, given))}: give {wanted}")


def check_methods(given: Sequence[str]) -> None:
    """Refuse methods that are not known, or by half of their name: runs and rows are called by the whole one.

    Raises:
        UserError: there is one.
    """
    check_list("--methods", given)
    for method in given:
        if (whole := get_method(method).name) != method:
            raise UserError(f"--methods {method}: give its whole name, {whole}")


def check_count(flag: str, given: int, least: int) -> None:
    """Refuse a number of images or rounds below `least`.

    Raises:
        UserError: it is.
    """
    check_number(flag, given, Bounds(least, 10**6, whole=True))


def describe_training(made: TrainConfig) -> str:
    """How long on what, for the text above a table."""
    return (
        f"{made.epochs} epochs of {made.train_images or 'all'} images, {made.model} of width factor {made.width}, "
        f"batch {made.batch_size}, {'bfloat16' if made.amp else 'float32'}"
    )


Runs = dict[tuple[str, int], Run]


def finished(sweep: Sweep, say: bool = False) -> Runs:
    """The runs that have ended.

    Args:
        say: print a line for each of the others.

    Raises:
        UserError: one of them was made with other settings.
    """
    found = {}
    for name, seed in sweep.all_runs():
        path = sweep.folder(name, seed)
        if (path / "config.json").is_file():
            folder, made = RunFolder.open(path)
            wanted = sweep.wanted(name, seed)
            free = FREE - COUNTS if judged_weights(wanted) == "best" else FREE
            names = [f.name for f in fields(made) if f.name not in free]
            other = [field for field in names if getattr(made, field) != getattr(wanted, field)]
            if other:
                raise UserError(f"{path} was made with another {', '.join(other)}: choose another --runs, or delete it")
            if folder.finished():
                found[name, seed] = Run.of(folder, made)
        if say and (name, seed) not in found:
            print(f"note: {path} is not finished: left out of the table")
    return found


def some_finished(sweep: Sweep, say: bool = False) -> Runs:
    """Those of `finished`.

    Raises:
        UserError: as there, or there is none.
    """
    if runs := finished(sweep, say):
        return runs
    raise UserError(f"no finished run in {sweep.runs}: let the stage train end first")


def train_missing(sweep: Sweep) -> None:
    """Train what is missing and go on with what is unfinished."""
    done = finished(sweep)
    for name, seed in sweep.all_runs():
        if (name, seed) in done:
            continue
        path, wanted = sweep.folder(name, seed), sweep.wanted(name, seed)
        print(f"\n== {name}, seed {seed}")
        if begun := (path / "config.json").is_file():
            kept = RunFolder.open(path)[1].threads
            if wanted.threads not in (None, kept):
                print(f"note: {path} goes on with the --threads that it began with: {kept or 'as torch chooses'}")
            wanted = TrainConfig(data_dir=sweep.data_dir, device=sweep.device, resume=path)
        elif path.is_dir() and any(path.iterdir()):
            raise UserError(f"{path} holds files, but no run: remove it, or choose another --runs")
        try:
            train(wanted)
        except (Stopped, KeyboardInterrupt):
            print(f"{path} {'goes on' if begun else 'is begun, and goes on'} when the same command is given again")
            raise
        gc.collect()  # a trainer refers to itself: without this its GPU memory stays taken during the next training


def judged_weights(made: TrainConfig) -> Literal["last", "best"]:
    """Which weights of a run are judged: the last ones, or where --best-of both chooses between weights and average on
    validation images, as the protocol of the recipe has it, the chosen ones."""
    return "best" if made.best_of == "both" else "last"


def keep(sweep: Sweep, runs: Runs) -> None:
    """Copy the records of the runs to `out`, a folder for each."""
    assert sweep.out is not None
    for (name, seed), run in runs.items():
        for record in KEPT:
            if (run.folder.path / record).is_file():
                target = sweep.out / f"{name}-{seed}" / record
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder.path / record, target)
