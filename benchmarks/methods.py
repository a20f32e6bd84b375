"""Every method of the family on one data set with the same budget and several seeds: who is robust, and at what cost.

    python benchmarks/methods.py --data-dir data                                # reduced size, CPU
    python benchmarks/methods.py --data-dir data --recipe paper --amp           # full size, GPU

Trains what is missing, judges the last weights of each run, times a step of each method in turns, and writes a table
(JSON and Markdown), a model card for each run, the pictures of `apart-fast analyze` and a report. Finished work is not
repeated and an unfinished run goes on where it was, so the command may be stopped (Ctrl-C, SIGTERM, a time limit) and
given again as often as needed.
"""

import functools
import gc
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import tyro

from apart_fast import METHODS as FAMILY
from apart_fast import Apart, build_model, evaluate
from apart_fast.analysis import collapse, curves, gradients, perturbations
from apart_fast.analysis.settings import CollapseConfig, CurvesConfig, GradientsConfig, PerturbationsConfig
from apart_fast.cli import guarded
from apart_fast.device import keep_freed_memory, pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.judge import describe
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.kernels import Crops
from apart_fast.loaders import Batch, Dataset, load_dataset, subset
from apart_fast.measure.interleave import interleave
from apart_fast.report.write import write_report
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
from apart_fast.training.run import train
from apart_fast.training.setup import AMP_DTYPES
from apart_fast.units import parse_eps, usual_padding

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds only the files beside it
from benchmarks.methods_table import make_row, to_markdown

METHODS = tuple(get_method(base).name for base in FAMILY)
REFERENCE = "pgd-10"
STRONG_RESTARTS = 10  # of PGD-50
# settings that do not change what is learned, so that a run made with others is still the run asked for
FREE = {*MOVABLE, "recipe", "out", "resume", "threads", "keep_weights", "checkpoint_every", "log_every", "val_every"}
KEPT = ("config.json", "environment.json", "metrics.jsonl", "summary.json", "card.json", "evaluation.json")


@dataclass
class Config:
    """Compare the methods: train, judge, time, tabulate, draw."""

    data_dir: Path = Path("data")
    """Where the data lies, or is downloaded to."""
    recipe: str = "small"
    """Settings that all runs share: small (CPU), paper, ..."""
    methods: tuple[str, ...] = METHODS
    """Methods to compare."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds to train each of them with."""
    amp: bool = False
    """Train in bfloat16."""
    eps: str | None = None
    """Radius in training. None: that of the recipe."""
    step_decay: float | None = None
    """lambda, weight decay of the learned step sizes. None: that of the recipe."""
    device: str | None = None
    """cuda, cpu, ... None: a GPU if there is one."""
    runs: Path | None = None
    """Folder of the runs. None: runs/methods-<recipe>."""
    out: Path | None = None
    """Folder of what is worth keeping. None: benchmarks/results/methods-<recipe>."""
    strong_images: int = 200
    """Test images for PGD-50 with 10 restarts."""
    autoattack_images: int = 0
    """Test images for AutoAttack (needs pyautoattack). 0: without."""
    rounds: int = 5
    """Rounds in which a step of each method is timed in turn."""
    stages: tuple[str, ...] = ()
    """Any of train, judge, cost, table, pictures. None given: all."""

    def __post_init__(self):
        self.runs = self.runs or Path("runs") / f"methods-{self.recipe}"
        self.out = self.out or Path("benchmarks/results") / f"methods-{self.recipe}"

    def wanted(self, method: str, seed: int) -> TrainConfig:
        """The settings of a run."""
        given = {name: getattr(self, name) for name in ("eps", "step_decay") if getattr(self, name) is not None}
        return TrainConfig.of(
            self.recipe,
            **given,
            data_dir=self.data_dir,
            method=method,
            seed=seed,
            amp=self.amp,
            device=self.device,
            keep_weights=1,
            out=self.folder(method, seed),
        )

    def folder(self, method: str, seed: int) -> Path:
        """Where a run lies."""
        return self.runs / f"{method}-{seed}"

    def all_runs(self) -> list[tuple[str, int]]:
        """(method, seed) of every run."""
        return [(method, seed) for method in self.methods for seed in self.seeds]


def finished(config: Config) -> dict[tuple[str, int], Run]:
    """The runs that have ended.

    Raises:
        UserError: one of them was made with other settings.
    """
    found = {}
    for method, seed in config.all_runs():
        path = config.folder(method, seed)
        if not (path / "config.json").is_file():
            continue
        folder, made = RunFolder.open(path)
        wanted = config.wanted(method, seed)
        names = [f.name for f in fields(made) if f.name not in FREE]
        other = [name for name in names if getattr(made, name) != getattr(wanted, name)]
        if other:
            raise UserError(f"{path} was made with another {', '.join(other)}: choose another --runs, or delete it")
        if (path / "summary.json").is_file():
            found[method, seed] = Run.of(folder, made)
    return found


# ---- stages


def train_missing(config: Config) -> None:
    """Train what is missing and go on with what is unfinished."""
    done = finished(config)
    for method, seed in config.all_runs():
        if (method, seed) in done:
            continue
        path = config.folder(method, seed)
        print(f"\n== {method}, seed {seed}")
        begun = (path / "config.json").is_file()
        train(TrainConfig(data_dir=config.data_dir, resume=path) if begun else config.wanted(method, seed))
        gc.collect()  # a trainer refers to itself: without this its GPU memory stays taken during the next training


def judge(config: Config) -> None:
    """Attack the last weights of each run; evaluation.json and card.json in its folder."""
    device = pick_device(config.device)
    # attacks, restarts, test images (None: as many as the run was tested on)
    jobs = (
        (("clean", "pgd-20"), 1, None),
        (("pgd-50",), STRONG_RESTARTS, config.strong_images),
        (("autoattack",), 1, config.autoattack_images),
    )
    for attacks, restarts, images in jobs:
        for (method, seed), run in finished(config).items():
            data = load_dataset(run.config.dataset, config.data_dir)
            known = _evaluation(run)
            n = min(len(data.test), run.config.test_images or len(data.test) if images is None else images)
            if n == 0 or all(known.get(attack, {}).get("n") == n for attack in attacks):
                continue
            name, last = run.config.dataset, run.folder.last
            state = load(last)
            test = subset(check_data(state["description"], data, name, last, state.get("classes")).test, n)
            report = evaluate(
                load_network(state, device, name=last),
                test.images,
                test.labels,
                eps=run.config.eval_eps,
                attacks=attacks,
                restarts=restarts,
                batch_size=256,
                device=device,
            )
            known |= asdict(report)["attacks"]
            run.folder.write("evaluation.json", _about(run) | {"attacks": known})
            write_card(run.folder, run.config)
            print(f"{method}, seed {seed}, {n} test images: {describe(asdict(report))}", flush=True)


def _about(run: Run) -> dict:
    return {
        "checkpoint": run.folder.last.name,
        "eps": parse_eps(run.config.eval_eps),
        "restarts of pgd-50": STRONG_RESTARTS,
    }


def _evaluation(run: Run) -> dict[str, dict]:
    """attack -> result of the run's evaluation.json, as far as it is of this benchmark."""
    try:
        found = run.evaluation
    except UserError:  # damaged: judged anew
        return {}
    attacks = found.get("attacks")
    mine = all(found.get(name) == value for name, value in _about(run).items())
    return attacks if mine and isinstance(attacks, dict) else {}


def cost(config: Config) -> None:
    """Time a step (with the update of the weights) of each method, in turns; cost.json."""
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()  # as in training
    data = load_dataset(config.wanted(REFERENCE, 0).dataset, config.data_dir)
    timings = interleave(
        {method: _step(config, method, data, device) for method in config.methods},
        rounds=config.rounds,
        warm_up=5 if device.type == "cuda" else 1,
        calls=5 if device.type == "cuda" else 1,  # in a row: the launch of the first one counts less
        device=str(device),
    )
    compared = REFERENCE in config.methods
    rows = {
        method: {
            "seconds": timings.median(method),
            "over_reference": asdict(timings.ratio(method, REFERENCE)) if compared else None,
        }
        for method in config.methods
    }
    atomic_write(config.out / "cost.json", to_json({"steps": rows, "environment": environment()}))


def _step(config: Config, method: str, data: Dataset, device: torch.device) -> Callable[[], None]:
    made = config.wanted(method, 0)
    n, shape = made.batch_size, tuple(data.train.images.shape[1:])
    h, w, c = shape
    model = build_model(made.model, len(data.classes), in_channels=c, image_size=(h, w), width=made.width)
    model.to(device, memory_format=torch.channels_last)
    amp = AMP_DTYPES[made.amp_dtype] if made.amp else None
    apart = Apart(model, 4 * n, shape, padding=usual_padding(h, w), eps=made.eps, method=method, amp=amp)
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


def table(config: Config) -> None:
    """One row for each method: means over the seeds, the worst seed, and the cost; table.json and table.md."""
    runs = finished(config)
    if not runs:
        raise UserError(f"no finished run in {config.runs}: let the stage train end first")
    measured = read_if_there(config.out / "cost.json", Object, "remove it and let the stage cost make it again")
    costs = measured["steps"] if measured else {}
    for method, seed in config.all_runs():
        if (method, seed) not in runs:
            print(f"note: {config.folder(method, seed)} is not finished: left out of the table")
    rows = []
    for method in config.methods:
        mine = {seed: run for (name, seed), run in runs.items() if name == method}
        if mine:
            rows.append(make_row(method, mine, map(_evaluation, mine.values()), costs.get(method)))
    for (method, seed), run in runs.items():
        for name in KEPT:
            if (run.folder.path / name).is_file():
                target = config.out / f"{method}-{seed}" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder.path / name, target)
    atomic_write(config.out / "table.json", to_json({"rows": rows, "environment": environment()}))
    text = to_markdown(rows, _about_table(config), REFERENCE)
    atomic_write(config.out / "table.md", text)
    print(text)


def _about_table(config: Config) -> str:
    """What stands above the table."""
    made = config.wanted(METHODS[0], 0)
    return (
        f"# Methods on {made.dataset}, recipe {config.recipe}\n\n"
        f"{made.epochs} epochs of {made.train_images or 'all'} images, {made.model} of width factor {made.width}, "
        f"batch {made.batch_size}, {'bfloat16' if made.amp else 'float32'}, eps {made.eps} in training, step decay "
        f"{made.step_decay:g}; "
        f"last weights, mean over the seeds, test images in brackets; attacks within {made.eval_eps}. "
        "Step times: medians with quartiles, taken in turns in one process.\n\n"
    )


def pictures(config: Config) -> None:
    """What `apart-fast analyze` and `apart-fast report` make of the runs."""
    runs = finished(config)
    common = dict(data_dir=config.data_dir, device=config.device, out=config.out)
    paths = [run.folder.path for run in runs.values()]
    watched = [run.folder.path for (method, _), run in runs.items() if method in ("fgsm", "fgsm+", "apart")]
    curves.run(CurvesConfig(runs=tuple(paths), **common))
    reference = runs.get((REFERENCE, config.seeds[0]))
    if reference and watched:
        collapse.run(CollapseConfig(runs=tuple(watched), reference=reference.folder.path, images=500, **common))
    if watched:
        gradients.run(GradientsConfig(runs=tuple(watched), **common))
    fallen = runs.get(("fgsm", config.seeds[0]))
    if fallen:
        perturbations.run(
            PerturbationsConfig(run=fallen.folder.path, reference=reference and reference.folder.path, **common)
        )
    write_report(paths, config.out / "report.html")


STAGES: dict[str, Callable[[Config], None]] = {
    "train": train_missing,
    "judge": judge,
    "cost": cost,
    "table": table,
    "pictures": pictures,
}


def main(config: Config) -> None:
    """Run the stages.

    Raises:
        UserError: no such stage, or what a stage says.
    """
    unknown = set(config.stages) - STAGES.keys()
    if unknown:
        raise UserError(f"no stage {', '.join(sorted(unknown))}: choose from {', '.join(STAGES)}")
    for name, least in (("rounds", 1), ("strong_images", 0), ("autoattack_images", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)} is too small: give at least {least}")
    for name in config.stages or STAGES:
        STAGES[name](config)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(expand_paths(tyro.cli(Config, description=__doc__)))))
