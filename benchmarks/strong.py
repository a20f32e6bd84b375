"""The most robust settings that lose no clean accuracy against PGD-10: chosen on validation images, judged once.

    python benchmarks/strong.py --data-dir data --amp

1. Every candidate (`CANDIDATES`) is trained with every seed, and so is PGD-10, all with the recipe's averaging.
2. Chosen is the candidate with the highest PGD-20 accuracy on validation images, mean over the seeds, among those whose
   clean accuracy there is not below PGD-10's. Of a run the weights count that --best-of both has taken.
3. It and PGD-10 alone are judged on test images: clean, PGD-20, PGD-50 with 10 restarts, AutoAttack. Their difference
   is taken within a seed; its interval is Student's over the seeds.

The networks that were chosen are the ones that are judged, and PGD-10 has one setting where APART has several, so the
choice favours APART a little; the interval is of the seeds, not of the images.

Writes strong.json and strong.md. Finished work is not repeated, and an unfinished run goes on where it was.
"""

import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds only the files beside it
from scipy.stats import t as student

from apart_fast.analysis import output
from apart_fast.cli import guarded
from apart_fast.errors import UserError
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.environment import environment
from apart_fast.units import parse_eps
from benchmarks import judging, sweep
from benchmarks.methods_table import TITLES
from benchmarks.sweep import REFERENCE, Sweep

# name -> settings beside the recipe's; only APART's own, so that PGD-10 has the same rates, smoothing and average
CANDIDATES: dict[str, dict] = {
    "apart": {"method": "apart", "step_decay": 1200.0},
    "apart+js": {"method": "apart+js", "step_decay": 1200.0},
    "apart+js-400": {"method": "apart+js", "step_decay": 400.0},
}
STAGES = ("train", "choose", "judge", "table")


@dataclass
class Config(Sweep):
    """Choose the strongest settings on validation images, and judge them once."""

    recipe: str = "fastat-small"
    """Settings that all runs share."""
    candidates: tuple[str, ...] = tuple(CANDIDATES)
    """Which to choose from (benchmarks/strong.py)."""
    strong_images: int = 1000
    """Test images for PGD-50 with 10 restarts."""
    autoattack_images: int = 500
    """Test images for AutoAttack (needs pyautoattack). 0: without."""
    stages: tuple[str, ...] = ()
    """Any of train, choose, judge, table. None given: all."""

    def __post_init__(self) -> None:
        self.place("methods", "strong")  # the runs are there for `methods.py` too

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: no such candidate or stage, something twice, or fewer than two seeds.
        """
        sweep.check_list("--candidates", self.candidates, tuple(CANDIDATES))
        sweep.check_list("--stages", self.stages, STAGES, least=0)
        sweep.check_list("--seeds", self.seeds, least=2)
        sweep.check_count("--strong-images", self.strong_images, 0)
        sweep.check_count("--autoattack-images", self.autoattack_images, 0)
        self.wanted(self.candidates[0], self.seeds[0]).check()

    def wanted(self, name: str, seed: int) -> TrainConfig:
        """The settings of a run of a candidate, or of PGD-10."""
        mine = {"method": REFERENCE} if name == REFERENCE else CANDIDATES[name]
        return self.settings(name, seed, test=False, **mine)

    def all_runs(self) -> list[tuple[str, int]]:
        """(name, seed) of every run: a seed of all before the next one."""
        return [(name, seed) for seed in self.seeds for name in (REFERENCE, *self.candidates)]


def choose(config: Config) -> dict:
    """Validation accuracies of every candidate and of PGD-10, and which is chosen.

    Raises:
        UserError: runs are missing, or no candidate is as accurate as PGD-10 on clean images.
    """
    runs = sweep.finished(config)
    if missing := [f"{name}-{seed}" for name, seed in config.all_runs() if (name, seed) not in runs]:
        raise UserError(f"not finished in {config.runs}: {', '.join(missing)}: let the stage train end first")
    validated = judging.validate(config, judging.Job(("clean", "pgd-20")))
    rows = []
    for name in (REFERENCE, *config.candidates):
        found = [validated[name, seed] for seed in config.seeds]
        row: dict = {"name": name, "settings": CANDIDATES.get(name, {"method": REFERENCE})}
        for attack in ("clean", "pgd-20"):
            row[attack] = statistics.mean(one[attack]["accuracy"] for one in found)
            row[f"{attack} by seed"] = [one[attack]["accuracy"] for one in found]
        rows.append(row)
    least = rows[0]["clean"]
    allowed = [row for row in rows[1:] if row["clean"] >= least]
    if not allowed:
        raise UserError(f"no candidate has {REFERENCE}'s clean accuracy on validation images, {least:.1%}: give others")
    chosen = max(allowed, key=lambda row: row["pgd-20"])["name"]
    return {"chosen": chosen, "images": config.wanted(chosen, config.seeds[0]).val_images, "rows": rows}


def difference(mine: list[float], other: list[float]) -> dict:
    """`mean` of the differences within a seed, and `interval`: 95 %, Student's t over the seeds; None of one seed."""
    found = [a - b for a, b in zip(mine, other, strict=True)]
    mean = statistics.mean(found)
    if len(found) == 1:
        return {"mean": mean, "interval": None}
    half = float(student.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / len(found) ** 0.5
    return {"mean": mean, "interval": (mean - half, mean + half)}


def compare(config: Config, chosen: str) -> list[dict]:
    """For each attack the accuracies of both on the seeds that have been judged by it on alike many images, and their
    difference, with its interval (None of a single seed)."""
    jobs, rows = judging.usual_jobs(config.strong_images, config.autoattack_images), []
    runs = {key: run for key, run in sweep.finished(config).items() if key[0] in (chosen, REFERENCE)}
    judged = judging.on_alike_images(runs, jobs)
    for attack in TITLES:
        found = {seed: [judged[name, seed].get(attack) for name in (chosen, REFERENCE)] for seed in config.seeds}
        both = {seed: (mine, other) for seed, (mine, other) in found.items() if mine and other}
        if both:
            mine, other = ([pair[i]["accuracy"] for pair in both.values()] for i in (0, 1))
            images = next(iter(both.values()))[0]["n"]
            by_seed = {chosen: mine, REFERENCE: other}
            row = {"attack": attack, "images": images, "seeds": [*both], "by seed": by_seed}
            rows.append(row | {"difference": difference(mine, other)})
        elif any(attack in of for of in judged.values()):
            print(f"note: {TITLES[attack]} is left out: no seed of both was judged by it")
    return rows


def to_markdown(config: Config, choice: dict, judged: list[dict]) -> str:
    """Both tables."""
    chosen, made = choice["chosen"], config.wanted(choice["chosen"], config.seeds[0])
    lines = [
        f"# The strongest settings on {made.dataset}, recipe {config.recipe}",
        "",
        f"{sweep.describe_training(made)}; attacks within {made.eval_eps}; means over "
        f"seeds {', '.join(map(str, config.seeds))}.",
        "",
        f"Chosen on {choice['images']} validation images: **{chosen}** (highest PGD-20 accuracy of those whose clean "
        f"accuracy is not below that of {REFERENCE}).",
        "",
        "| candidate | settings | clean, validation | PGD-20, validation |",
        "| --- | --- | --- | --- |",
    ]
    for row in choice["rows"]:
        said = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        lines.append(f"| {row['name']} | {said} | {row['clean']:.1%} | {row['pgd-20']:.1%} |")
    if not judged:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "Judged on test images, the same networks that were chosen (difference in points, within a seed, 95 % interval "
        "over the seeds, not over images):",
        "",
        f"| attack (images) | {chosen} | {REFERENCE} | difference |",
        "| --- | --- | --- | --- |",
    ]
    for row in judged:
        mine, other = (statistics.mean(row["by seed"][name]) for name in (chosen, REFERENCE))
        title = f"{TITLES[row['attack']]} ({row['images']:,})"
        if len(row["seeds"]) < len(config.seeds):
            title += f", seeds {', '.join(map(str, row['seeds']))} only"
        said = f"{100 * row['difference']['mean']:+.1f}"
        if row["difference"]["interval"]:
            low, high = row["difference"]["interval"]
            said += f" [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"| {title} | {mine:.1%} | {other:.1%} | {said} |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Run the stages.

    Raises:
        UserError: settings that make no sense, runs with other settings, or what a stage says.
    """
    config.check()
    assert config.out is not None
    config.check_out()
    output.check(config.out, "strong")
    stages = config.stages or STAGES
    if "train" in stages:
        sweep.train_missing(config)
    if not {"choose", "judge", "table"} & {*stages}:
        return
    choice = choose(config)
    both = replace(config, candidates=(choice["chosen"],))
    print(f"chosen on validation images: {choice['chosen']}")
    if "judge" in stages:
        judging.judge(both, judging.usual_jobs(config.strong_images, config.autoattack_images))
    if "table" in stages:
        judged = compare(both, choice["chosen"])
        runs = sweep.finished(config)
        sweep.keep(config, runs)
        made = config.wanted(choice["chosen"], config.seeds[0])
        numbers = {
            "dataset": made.dataset,
            "eps": parse_eps(made.eval_eps),
            "runs": [run.folder.path.name for run in runs.values()],
            "choice": choice,
            "judged": judged,
            "environment": environment(),
        }
        atomic_write(config.out / "strong.json", to_json(numbers))
        text = to_markdown(config, choice, judged)
        atomic_write(config.out / "strong.md", text)
        print(text)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(expand_paths(tyro.cli(Config, description=__doc__)))))
