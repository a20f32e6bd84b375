"""Many runs with shared settings: which have ended, training what is missing, judging, timing a step of each.

`methods.py`, `time_to_accuracy.py` and `strong.py` say which runs there are (`Sweep`). Each run has its folder, so that
one benchmark can take those of another. Finished work is not repeated, and an unfinished run goes on where it was.
"""

import functools
import gc
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from apart_fast import Apart, build_model, evaluate
from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.judge import describe
from apart_fast.files import atomic_write, to_json
from apart_fast.kernels import Crops
from apart_fast.loaders import Batch, Dataset, load_dataset, subset
from apart_fast.measure.interleave import interleave
from apart_fast.parallel.world import World
from apart_fast.runs.card import write_card
from apart_fast.runs.checkpoint import check_data, load, load_network
from apart_fast.runs.config import MOVABLE, TrainConfig
from apart_fast.runs.environment import environment
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import Object, read_if_there
from apart_fast.runs.reading import Run
from apart_fast.step.methods import get_method
from apart_fast.step.optimizer import SGD
from apart_fast.training.execution import GraphedStep
from apart_fast.training.run import machine, train
from apart_fast.training.setup import AMP_DTYPES, split
from apart_fast.units import Bounds, check_number, parse_eps, usual_padding

REFERENCE = "pgd-10"  # whose step the others are compared with
RESTARTS = 10  # of PGD-50
# settings that do not change what is judged, so that a run made with others is still the run asked for
FREE = {
    *MOVABLE,
    *("recipe", "out", "resume", "threads", "keep_weights", "checkpoint_every", "log_every", "val_every", "test"),
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
            if (path / "summary.json").is_file():
                found[name, seed] = Run.of(folder, made)
        if say and (name, seed) not in found:
            print(f"note: {path} is not finished: left out of the table")
    return found


def train_missing(sweep: Sweep) -> None:
    """Train what is missing and go on with what is unfinished."""
    done = finished(sweep)
    for name, seed in sweep.all_runs():
        if (name, seed) in done:
            continue
        path = sweep.folder(name, seed)
        print(f"\n== {name}, seed {seed}")
        begun = (path / "config.json").is_file()
        train(TrainConfig(data_dir=sweep.data_dir, resume=path) if begun else sweep.wanted(name, seed))
        gc.collect()  # a trainer refers to itself: without this its GPU memory stays taken during the next training


# ---- judging


class Job(NamedTuple):
    """Attacks on test images.

    Attributes:
        images: so many of them; None: as many as the runs are tested on.
    """

    attacks: tuple[str, ...]
    images: int | None = None
    restarts: int = 1


def usual_jobs(strong_images: int, autoattack_images: int) -> tuple[Job, ...]:
    """Clean and PGD-20, PGD-50 with restarts, AutoAttack."""
    return (
        Job(("clean", "pgd-20")),
        Job(("pgd-50",), strong_images, RESTARTS),
        Job(("autoattack",), autoattack_images),
    )


def judged_weights(made: TrainConfig) -> str:
    """Which weights of a run are judged: the last ones, or where --best-of both chooses between weights and average on
    validation images, as the protocol of the recipe has it, the chosen ones."""
    return "best" if made.best_of == "both" else "last"


def judge(sweep: Sweep, jobs: Iterable[Job]) -> None:
    """Attack the weights of each finished run on test images; evaluation.json and card.json in its folder.

    What was judged on as many images before stays; on another number it is judged anew, so that all rows are alike.
    """
    for job in jobs:
        for run, known in _attack(sweep, job, "test", evaluation):
            run.folder.write("evaluation.json", _about(run) | {"attacks": known})
            write_card(run.folder, run.config)


def validate(sweep: Sweep, job: Job) -> dict[tuple[str, int], dict]:
    """The same on all validation images, validation.json; returns attack -> result for each finished run."""
    for run, known in _attack(sweep, job, "val", _validation):
        run.folder.write("validation.json", _about(run) | {"attacks": known})
    return {key: _validation(run) for key, run in finished(sweep).items()}


def _attack(
    sweep: Sweep, job: Job, which: Literal["test", "val"], read: Callable[[Run], dict]
) -> Iterator[tuple[Run, dict]]:
    """(run, attack -> result) of each finished run that lacks some of the job; `read`: what it has."""
    device = pick_device(sweep.device)
    for (name, seed), run in finished(sweep).items() if job.images != 0 else ():
        data = load_dataset(run.config.dataset, sweep.data_dir)
        shown = getattr(split(run.config, data), which)
        if job.images is not None:  # fewer or more than the run is tested on
            whole = data.test if which == "test" else shown
            shown = subset(whole, min(len(whole), job.images))
        n, known = len(shown), read(run)
        if all(known.get(attack, {}).get("n") == n for attack in job.attacks):
            continue
        path = getattr(run.folder, judged_weights(run.config))
        state = load(path)
        check_data(state["description"], data, run.config.dataset, path, state.get("classes"))
        report = evaluate(
            load_network(state, device, name=path),
            shown.images,
            shown.labels,
            eps=run.config.eval_eps,
            attacks=job.attacks,
            restarts=job.restarts,
            batch_size=256,
            device=device,
        )
        print(f"{name}, seed {seed}, {n} {which} images: {describe(asdict(report))}", flush=True)
        yield run, known | asdict(report)["attacks"]


def _about(run: Run) -> dict:
    return {
        "checkpoint": getattr(run.folder, judged_weights(run.config)).name,
        "eps": parse_eps(run.config.eval_eps),
        "restarts of pgd-50": RESTARTS,
    }


def evaluation(run: Run) -> dict[str, dict]:
    """attack -> result of the run's evaluation.json, as far as it is of `judge`."""
    try:
        found = run.evaluation
    except UserError:  # damaged: judged anew
        return {}
    return _results(run, found)


def _validation(run: Run) -> dict[str, dict]:
    try:
        found = read_if_there(run.folder.path / "validation.json", Object, "remove it, and it is made again")
    except UserError:
        return {}
    return _results(run, found or {})


def _results(run: Run, found: dict) -> dict[str, dict]:
    attacks = found.get("attacks")
    mine = all(found.get(name) == value for name, value in _about(run).items())
    return attacks if mine and isinstance(attacks, dict) else {}


def keep(sweep: Sweep, runs: Runs) -> None:
    """Copy the records of the runs to `out`, a folder for each."""
    assert sweep.out is not None
    for (name, seed), run in runs.items():
        for record in KEPT:
            if (run.folder.path / record).is_file():
                target = sweep.out / f"{name}-{seed}" / record
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder.path / record, target)


# ---- the cost of a step


def measure_costs(sweep: Sweep, configs: dict[str, TrainConfig], rounds: int) -> dict[str, dict]:
    """Time a training step (with the update of the weights) of each of `configs` in turns; cost.json in `out`.

    Returns:
        name -> `seconds` (median) and `over_reference`, the ratio to the step of PGD-10 with its quartiles (None: it is
        not among them).
    """
    assert sweep.out is not None
    first = next(iter(configs.values()))
    data = load_dataset(first.dataset, sweep.data_dir)
    with machine(first, World()) as device:  # as in training
        timings = interleave(
            {name: _step(made, data, device) for name, made in configs.items()},
            rounds=rounds,
            warm_up=5 if device.type == "cuda" else 1,
            calls=5 if device.type == "cuda" else 1,  # in a row: the launch of the first one counts less
            device=str(device),
        )
        compared = REFERENCE in configs
        rows = {
            name: {
                "seconds": timings.median(name),
                "over_reference": asdict(timings.ratio(name, REFERENCE)) if compared else None,
                "settings": _timed_settings(made, device),
            }
            for name, made in configs.items()
        }
        atomic_write(sweep.out / "cost.json", to_json({"steps": rows, "environment": environment()}))
    return rows


def costs(sweep: Sweep, configs: dict[str, TrainConfig]) -> dict[str, dict]:
    """What `measure_costs` has left in `out` for `configs`, as far as it was timed with the same settings."""
    assert sweep.out is not None
    measured = read_if_there(sweep.out / "cost.json", Object, "remove it, and it is measured again")
    steps = measured["steps"] if measured else {}
    device = pick_device(sweep.device)
    found = {
        name: steps[name]
        for name, made in configs.items()
        if steps.get(name, {}).get("settings") == _timed_settings(made, device)
    }
    if other := [name for name in configs if name in steps and name not in found]:
        print(f"note: {sweep.out / 'cost.json'} is of other settings for {', '.join(other)}: not used")
    return found


def _timed_settings(made: TrainConfig, device: torch.device) -> dict:
    """What a step's time depends on, in JSON's types."""
    names = ("method", "dataset", "model", "width", "batch_size", "amp", "amp_dtype", "threads")
    return {name: getattr(made, name) for name in names} | {"device": str(device)}


def _step(made: TrainConfig, data: Dataset, device: torch.device) -> Callable[[], None]:
    n, shape = made.batch_size, tuple(data.train.images.shape[1:])
    h, w, c = shape
    model = build_model(made.model, len(data.classes), in_channels=c, image_size=(h, w), width=made.width)
    model.to(device, memory_format=torch.channels_last)
    amp = AMP_DTYPES[made.amp_dtype] if made.amp else None
    settings = dict(padding=usual_padding(h, w), eps=made.eps, method=made.method, amp=amp)
    apart = Apart(model, 4 * n, shape, label_smoothing=made.label_smoothing, **settings)
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=made.weight_decay)
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randint(0, 2 * apart.padding + 1, (n, 2), generator=generator).to(device)
    rows = torch.arange(n, device=device)
    crops = Crops(rows, rows, offsets, torch.zeros(n, dtype=torch.bool, device=device))
    batch = Batch(data.train.images[:n].to(device), data.train.labels[:n].to(device), crops)

    def advance(b: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        apart.step_crops(b.images, b.labels, b.crops)
        optimizer.step()

    on_gpu = device.type == "cuda"
    return functools.partial(GraphedStep(advance, n, [apart.generator]) if on_gpu else advance, batch)
