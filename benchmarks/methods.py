"""Every method of the family on one data set with the same budget and several seeds: who is robust, and at what cost.

    python benchmarks/methods.py --data-dir data                                # reduced size, CPU
    python benchmarks/methods.py --data-dir data --recipe paper --amp           # full size, GPU

Trains what is missing, judges the last weights of each run (or, where the recipe has --best-of both, the weights that
validation has chosen), times a step of each method in turns, and writes a table (JSON and Markdown), a model card for
each run, the pictures of `apart-fast analyze` and a report. Finished work is not repeated and an unfinished run goes on
where it was, so the command may be stopped (Ctrl-C, SIGTERM, a time limit) and given again as often as needed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds only the files beside it
from apart_fast import METHODS as FAMILY
from apart_fast.analysis import collapse, curves, gradients, perturbations
from apart_fast.analysis.settings import CollapseConfig, CurvesConfig, GradientsConfig, PerturbationsConfig
from apart_fast.cli import guarded
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.report.write import write_report
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.environment import environment
from apart_fast.step.methods import get_method
from benchmarks import judging, step_costs, sweep
from benchmarks.methods_table import make_row, to_markdown
from benchmarks.sweep import REFERENCE, Sweep

METHODS = tuple(get_method(base).name for base in FAMILY)


@dataclass
class Config(Sweep):
    """Compare the methods: train, judge, time, tabulate, draw."""

    methods: tuple[str, ...] = METHODS
    """Methods to compare."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds to train each of them with."""
    eps: str | None = None
    """Radius in training. None: that of the recipe."""
    step_decay: float | None = None
    """lambda, weight decay of the learned step sizes. None: that of the recipe."""
    strong_images: int = 200
    """Test images for PGD-50 with 10 restarts."""
    autoattack_images: int = 0
    """Test images for AutoAttack (needs pyautoattack). 0: without."""
    rounds: int = 5
    """Rounds in which a step of each method is timed in turn."""
    stages: tuple[str, ...] = ()
    """Any of train, judge, cost, table, pictures. None given: all."""

    def __post_init__(self) -> None:
        self.place("methods", "methods")

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: no such method or stage, something twice, or a number that makes no sense.
        """
        sweep.check_methods(self.methods)
        sweep.check_list("--seeds", self.seeds, least=0)  # none: nothing to train
        sweep.check_list("--stages", self.stages, tuple(STAGES), least=0)
        sweep.check_count("--rounds", self.rounds, 1)
        sweep.check_count("--strong-images", self.strong_images, 0)
        sweep.check_count("--autoattack-images", self.autoattack_images, 0)
        self.wanted(self.methods[0], 0).check()

    def wanted(self, method: str, seed: int) -> TrainConfig:
        """The settings of a run."""
        given = {name: getattr(self, name) for name in ("eps", "step_decay") if getattr(self, name) is not None}
        return self.settings(method, seed, method=method, keep_weights=1, **given)

    def all_runs(self) -> list[tuple[str, int]]:
        """(method, seed) of every run."""
        return [(method, seed) for method in self.methods for seed in self.seeds]


# ---- stages


def judge(config: Config) -> None:
    """Attack the weights of each run that count."""
    judging.judge(config, judging.usual_jobs(config.strong_images, config.autoattack_images))


def cost(config: Config) -> None:
    """Time a step of each method, in turns; cost.json."""
    step_costs.measure_costs(config, config.methods, config.rounds)


def table(config: Config) -> None:
    """One row for each method: means over the seeds, the worst seed, and the cost; table.json and table.md."""
    runs = sweep.some_finished(config, say=True)
    judged = judging.on_alike_images(runs, judging.usual_jobs(config.strong_images, config.autoattack_images))
    costs, rows = step_costs.costs(config, config.methods), []
    for method in config.methods:
        mine = {seed: run for (name, seed), run in runs.items() if name == method}
        if mine:
            rows.append(make_row(method, mine, [judged[method, seed] for seed in mine], costs.get(method)))
    if untimed := [row["method"] for row in rows if not row["step"]]:
        print(f"note: no step time of {', '.join(untimed)} in {config.out}: give --stages cost")
    sweep.keep(config, runs)
    atomic_write(config.out / "table.json", to_json({"rows": rows, "environment": environment()}))
    text = to_markdown(rows, _about_table(config, step_costs.where(costs)), REFERENCE)
    atomic_write(config.out / "table.md", text)
    print(text)


WEIGHTS = {
    "last": "last weights",
    "best": "the better of the weights and their average after any validated epoch, by PGD-10 on validation images",
}


def _about_table(config: Config, timed: str) -> str:
    """What stands above the table; `timed`: where the steps were."""
    made = config.wanted(METHODS[0], 0)
    return (
        f"# Methods on {made.dataset}, recipe {config.recipe}\n\n"
        f"{sweep.describe_training(made)}, eps {made.eps} in training, step decay "
        f"{made.step_decay:g}; {WEIGHTS[sweep.judged_weights(made)]}, mean and standard deviation over the seeds, "
        f"test images in brackets; attacks within {made.eval_eps}. "
        f"Step times: medians with quartiles, taken in turns with the step of {REFERENCE} in one process ({timed}).\n\n"
    )


def pictures(config: Config) -> None:
    """What `apart-fast analyze` and `apart-fast report` make of the runs."""
    runs = sweep.some_finished(config)
    common = dict(data_dir=config.data_dir, device=config.device, out=config.out)
    paths = [run.folder.path for run in runs.values()]
    kept = {key: run for key, run in runs.items() if run.folder.kept_weights()}
    if missing := [run.folder.path.name for key, run in runs.items() if key not in kept]:
        print(f"note: {', '.join(missing)} kept no weights of their epochs: only their curves are drawn")
    watched = [run.folder.path for (method, _), run in kept.items() if method in ("fgsm", "fgsm+", "apart")]
    curves.run(CurvesConfig(runs=tuple(paths), **common))
    reference = runs.get((REFERENCE, config.seeds[0]))
    if reference and watched:
        collapse.run(CollapseConfig(runs=tuple(watched), reference=reference.folder.path, images=500, **common))
    if watched:
        gradients.run(GradientsConfig(runs=tuple(watched), **common))
    fallen = kept.get(("fgsm", config.seeds[0]))
    if fallen:
        perturbations.run(
            PerturbationsConfig(run=fallen.folder.path, reference=reference and reference.folder.path, **common)
        )
    write_report(paths, config.out / "report.html")


STAGES: dict[str, Callable[[Config], None]] = {
    "train": sweep.train_missing,
    "judge": judge,
    "cost": cost,
    "table": table,
    "pictures": pictures,
}


def main(config: Config) -> None:
    """Run the stages.

    Raises:
        UserError: settings that make no sense, or what a stage says.
    """
    config.check()
    config.check_out()
    for name in config.stages or STAGES:
        STAGES[name](config)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(expand_paths(tyro.cli(Config, description=__doc__)))))
