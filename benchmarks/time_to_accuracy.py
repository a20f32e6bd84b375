"""Time to robust accuracy: how long a method trains until PGD-20 on held-out images reaches a target and stays there.

    python benchmarks/time_to_accuracy.py --data-dir data

Trains what is missing, every method with every seed in the same engine, validates after each epoch, times a step of
each method in turns, and writes a table (JSON and Markdown) and a picture of robust accuracy over training time.
Targets and seeds are fixed before anything is trained: they are settings, and runs do not depend on the targets. A
target counts as reached in the first epoch from which on all are at or above it, to the last. Its seconds are those of
the steps up to the end of that epoch, each as long as the method's median in cost.json: what else ran on the machine
during hours of training does not count, so only the timing wants a quiet machine. Passes (`Method.passes`) are counted.
Finished runs are not repeated, an unfinished one goes on where it was, and the runs of `methods.py --recipe ...` count
if they were validated after each epoch.
"""

import math
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds only the files beside it
from apart_fast.analysis import output
from apart_fast.analysis.groups import group_colours
from apart_fast.cli import guarded
from apart_fast.errors import UserError
from apart_fast.files import atomic_write, expand_paths
from apart_fast.loaders import load_dataset
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.reading import Run, points
from apart_fast.step.methods import get_method
from apart_fast.units import Bounds, check_number, parse_eps
from benchmarks import methods, step_costs, sweep

NAME, MEASURE = "time_to_accuracy", "val_pgd20"
_ROUNDING = 1e-9  # 28.6 / 100 is above 143 / 500
METHODS = tuple(name for name in methods.METHODS if get_method(name).steps)  # what aims at robustness


@dataclass
class Config(sweep.Sweep):
    """Train the methods until they are robust, and say how long that took."""

    methods: tuple[str, ...] = METHODS
    """Methods to compare."""
    targets: tuple[float, ...] = (25.0, 30.0, 33.0)
    """Accuracies under PGD-20 to reach, in percent."""
    epochs: int | None = None
    """Epochs of each run, and of the triangle of its learning rate. None: those of the recipe."""
    rounds: int = 9
    """Rounds in which a step of each method is timed in turn."""
    train: bool = True
    """Train what is missing. --no-train: tabulate what is there."""

    def __post_init__(self) -> None:
        self.place("time", "time")

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: no method, seed or target, one of them twice, or a number that makes no sense.
        """
        sweep.check_methods(self.methods)
        sweep.check_list("--seeds", self.seeds)
        sweep.check_list("--targets", self.targets)
        for target in self.targets:
            check_number("--targets", target, Bounds(0, 100))
        sweep.check_count("--rounds", self.rounds, 1)
        self.wanted(self.methods[0], self.seeds[0]).check()

    def wanted(self, method: str, seed: int) -> TrainConfig:
        """The settings of a run."""
        given = {} if self.epochs is None else {"epochs": self.epochs}
        if given and TrainConfig.of(self.recipe).schedule == "triangle":
            given["cycle"] = self.epochs
        return self.settings(method, seed, method=method, val_every=1, test=False, **given)

    def all_runs(self) -> list[tuple[str, int]]:
        """(method, seed) of every run: a seed of all methods before the next one, so that they compare at any time."""
        return [(method, seed) for seed in self.seeds for method in self.methods]


def reached(accuracies: list[float], target: float) -> int | None:
    """Index of the first of `accuracies` from which on all are at least `target`; None: the last one is not."""
    below = [i for i, accuracy in enumerate(accuracies) if accuracy < target - _ROUNDING]
    first = below[-1] + 1 if below else 0
    return first if first < len(accuracies) else None


def check_validated(config: Config) -> None:
    """Refuse runs, finished or not, that are not validated after each epoch.

    Raises:
        UserError: there is one.
    """
    for method, seed in config.all_runs():
        path = config.folder(method, seed)
        if (path / "config.json").is_file() and RunFolder.open(path)[1].val_every != 1:
            raise UserError(f"{path} is not validated after each epoch: choose another --runs, or delete it")


def curve(run: Run, images: int, step_seconds: float) -> dict:
    """`seconds`, `passes` (of single images) and `accuracy` at the end of each epoch of a run on so many images.

    Args:
        step_seconds: of a whole batch; a smaller one counts as the part of it that it is.

    Raises:
        UserError: an epoch lacks its validation.
    """
    passes, epochs = get_method(run.config.method).passes * images, range(1, run.config.epochs + 1)
    accuracies = dict(points(run.records, MEASURE))
    if lacking := [str(epoch) for epoch in epochs if epoch not in accuracies]:
        file = run.folder.path / "metrics.jsonl"
        raise UserError(
            f"{file} has no {MEASURE} of epoch {', '.join(lacking)}: choose another --runs, or delete the run"
        )
    return {
        "seconds": [epoch * images / run.config.batch_size * step_seconds for epoch in epochs],
        "passes": [epoch * passes for epoch in epochs],
        "accuracy": [accuracies[epoch] for epoch in epochs],
    }


def median(values: list[float]) -> float:
    """Of the seeds, where one that never arrives is inf: inf where half of them or more do not."""
    ordered = sorted(values)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return math.inf if math.inf in middle else statistics.mean(middle)


def make_row(method: str, curves: dict[int, dict], targets: tuple[float, ...]) -> dict:
    """What is known of a method: for each target, by seed, the epoch (from 1), seconds and passes; and their medians,
    None where half of the seeds or more do not reach it.

    Args:
        curves: seed -> what `curve` gave.
    """
    row: dict = {"method": method, "seeds": sorted(curves), "passes_of_a_step": get_method(method).passes}
    row["last"] = statistics.mean(one["accuracy"][-1] for one in curves.values())
    for target in targets:
        at = {seed: reached(one["accuracy"], target / 100) for seed, one in curves.items()}
        found: dict = {"epochs": {seed: None if i is None else i + 1 for seed, i in at.items()}}
        for unit in ("seconds", "passes"):
            values = {seed: math.inf if i is None else curves[seed][unit][i] for seed, i in at.items()}
            middle = median(list(values.values()))
            found[unit] = None if middle == math.inf else middle
            found[f"{unit}_by_seed"] = {seed: None if v == math.inf else v for seed, v in values.items()}
        row[f"{target:g}"] = found
    return row


def to_markdown(rows: list[dict], targets: tuple[float, ...], about: str) -> str:
    """The table, below `about`."""
    head = ["method", "seeds", "passes", *(f"{t:g} %: seconds" for t in targets)]
    head += [*(f"{t:g} %: 10^6 passes" for t in targets), "at the end"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["method"], str(len(row["seeds"])), f"{row['passes_of_a_step']} F"]
        for unit, scale, digits in (("seconds", 1.0, 0), ("passes", 1e6, 2)):
            for target in targets:
                found = row[f"{target:g}"]
                there = sum(epoch is not None for epoch in found["epochs"].values())
                note = "" if there == len(row["seeds"]) else f" ({there} of {len(row['seeds'])})"
                value = found[unit]
                cells.append(("not reached" if value is None else f"{value / scale:,.{digits}f}") + note)
        lines.append([*cells, f"{row['last']:.1%}"])
    return about + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(numbers: dict) -> Figure:
    """Robust accuracy over training time and over passes, a line for each run; the targets are dotted."""
    colours = group_colours([row["method"] for row in numbers["rows"]])
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, unit, scale in zip(figure.subplots(1, 2, sharey=True), ("seconds", "passes"), (60, 1e6), strict=True):
        for method, curves in numbers["curves"].items():
            for i, one in enumerate(curves.values()):
                label = method if i == 0 else None
                x, y = [value / scale for value in one[unit]], [100 * value for value in one["accuracy"]]
                axes.plot(x, y, color=colours[method], lw=1.2, alpha=0.8, label=label)
        for target in numbers["targets"]:
            axes.axhline(target, color="0.5", lw=0.8, ls=":")
        axes.set(
            xscale="log", xlabel={"seconds": "minutes of training steps", "passes": "10^6 passes of an image"}[unit]
        )
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel(f"PGD-20 accuracy on {numbers['images']:,} validation images (%)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False, fontsize=9)
    return figure


def about(config: Config, timed: str) -> str:
    """What stands above the table; `timed`: where the steps were."""
    made = config.wanted(config.methods[0], config.seeds[0])
    return (
        f"# Time to robust accuracy on {made.dataset}, recipe {config.recipe}\n\n"
        f"{sweep.describe_training(made)}, eps {made.eps} in training; PGD-20 within "
        f"{made.eval_eps} on {made.val_images} validation images after each epoch. Medians over the seeds until a "
        "target is reached and held to the end; in brackets how many seeds do, where not all. Seconds: steps until "
        f"then times the median of a step with its update, timed in turns in one process ({timed}), without loading, "
        "averaging of the weights, and what a method does now and then only (directions at a grey image)."
        f"{' What is validated is the average of the weights.' if made.ema else ''}\n\n"
    )


def main(config: Config) -> None:
    """Train, tabulate and draw.

    Raises:
        UserError: settings that make no sense, runs with other settings, or none that has ended.
    """
    config.check()
    assert config.out is not None
    config.check_out()
    output.check(config.out, NAME)
    check_validated(config)  # before hours of training
    if config.train:
        sweep.train_missing(config)
    runs = sweep.finished(config, say=True)
    if not runs:
        raise UserError(f"no finished run in {config.runs}: leave out --no-train")
    made = config.wanted(config.methods[0], config.seeds[0])
    costs = step_costs.costs(config, config.methods)
    lacking = set(config.methods) - costs.keys()
    scattered = not step_costs.together(costs)
    stale = config.train and not step_costs.taken_here(costs, config.rounds, made.threads)
    if lacking or scattered or stale:
        costs = step_costs.measure_costs(config, config.methods, config.rounds)
    else:
        print(f"step times: those in {config.out / step_costs.FILE} ({step_costs.where(costs)})")
    there = len(load_dataset(made.dataset, config.data_dir).train) - made.val_images
    curves: dict[str, dict[int, dict]] = {}
    for (method, seed), run in runs.items():
        step_seconds = costs[method]["seconds"]
        curves.setdefault(method, {})[seed] = curve(run, min(there, made.train_images or there), step_seconds)
    rows = [make_row(method, curves[method], config.targets) for method in config.methods if method in curves]
    numbers = {
        "dataset": made.dataset,
        "eps": parse_eps(made.eval_eps),
        "images": made.val_images,
        "targets": config.targets,
        "runs": [run.folder.path.name for run in runs.values()],
        "rows": rows,
        "curves": curves,
    }
    output.save(config.out, NAME, numbers, partial(draw, numbers))
    text = to_markdown(rows, config.targets, about(config, step_costs.where(costs)))
    atomic_write(config.out / f"{NAME}.md", text)
    print(text)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(expand_paths(tyro.cli(Config, description=__doc__)))))
