"""Robust accuracy over the epochs: its best, its last, and how much was lost between them, over several seeds."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from apart_fast.analysis import output
from apart_fast.analysis.cache import ResultCache, result_key
from apart_fast.analysis.groups import group_runs
from apart_fast.analysis.inputs import judged_data, open_runs
from apart_fast.analysis.pictures.curves import draw
from apart_fast.analysis.published import comparable, published
from apart_fast.analysis.settings import CurvesConfig
from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.judge import evaluate
from apart_fast.loaders import fingerprint
from apart_fast.runs.checkpoint import load_network
from apart_fast.runs.reading import Run, points
from apart_fast.units import parse_eps

# method -> (entry of published.json, its epochs, its PGD-20 accuracy)
_PUBLISHED = {
    "apart": ("pgd_curve", "plotted_index", "APART"),
    "pgd-10": ("pgd_curve", "plotted_index", "PGD10"),
    "fgsm": ("fgsm_curve", "epoch", "FGSM_PGD20_robust"),
    "fgsm+": ("fgsm_curve", "epoch", "FGSMplus_PGD20_robust"),
}
_ALWAYS = ("apart", "pgd-10")  # drawn beside any method; the others beside runs of their own


# ---- numbers


def recorded(runs: Sequence[Run], prefer: str = "probe_pgd10") -> tuple[str, list[dict]]:
    """(measure, for each run its `epochs`, `robust` accuracies and number of `images`), as the runs recorded them.

    The measure is one for all the runs: validation under PGD-20 where every epoch has it, else the one to `prefer` of
    the probe under PGD-10 and validation under PGD-20 at the epochs that have it, else the other one. Also
    `clean_epochs` and `clean`: validation.

    Raises:
        UserError: the runs have no measure in common, or looked within different radii.
    """
    radii = {parse_eps(one.config.eval_eps): one.config.eval_eps for one in runs}
    if len(radii) > 1:
        raise UserError(f"the runs were judged within different radii ({', '.join(radii.values())}): add --judge")
    if all(0 < len(one.records) == len(points(one.records, "val_pgd20")) for one in runs):
        measure = "val_pgd20"
    else:
        measures = sorted(("probe_pgd10", "val_pgd20"), key=lambda m: m != prefer)
        common = [m for m in measures if all(points(one.records, m) for one in runs)]
        if not common:
            raise UserError("the runs recorded no robust accuracy that they have in common: add --judge")
        measure = common[0]
    return measure, [_record(one, measure) for one in runs]


def _record(one: Run, measure: str) -> dict:
    images = one.config.val_images
    if measure == "probe_pgd10":
        images = min(images, one.config.probe_images)
    epochs, robust = _column(one.records, measure)
    clean_epochs, clean = _column(one.records, "val_clean")
    return {"images": images, "epochs": epochs, "robust": robust, "clean_epochs": clean_epochs, "clean": clean}


def _column(records: list[dict], key: str) -> tuple[list[int], list[float]]:
    found = points(records, key)
    return [epoch for epoch, _ in found], [value for _, value in found]


def judged(config: CurvesConfig, runs: Sequence[Run]) -> tuple[str, list[dict]]:
    """Like `recorded`, judged anew: every kept checkpoint on `config.images` test images.

    Results are kept in curves-cache.json under `config.out`: a stopped call goes on where it was.

    Raises:
        UserError: no data, or a damaged checkpoint.
    """
    device, (_, split) = pick_device(config.device), judged_data(config, runs)
    cache = ResultCache(config.out / "curves-cache.json")
    settings = {"images": fingerprint(split), "eps": parse_eps(config.eps), "seed": config.seed, "steps": 20}

    def judge(file: Path) -> list[float]:
        return _judge(config, load_network(file, device), split.images, split.labels)

    found = []
    total = sum(len(one.weights) for one in runs)
    with tqdm(total=total, desc="judging", unit="epoch", disable=None if config.progress else True) as bar:
        for one in runs:
            pairs = []
            for file in one.weights.values():
                pairs.append(cache.get_or_make(result_key(file, settings), _is_result, partial(judge, file)))
                bar.update()
            epochs = list(one.weights)
            clean, robust, blind = (list(column) for column in zip(*pairs, strict=True))
            found.append(
                {"images": len(split), "epochs": epochs, "robust": robust, "clean_epochs": epochs, "clean": clean}
                | {"no_gradient": blind}
            )
    return "test_pgd20", found


def _is_result(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value)


def _judge(config: CurvesConfig, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """[clean, PGD-20 accuracy, images that stand under PGD-20 without a gradient to follow]"""
    settings: dict[str, Any] = dict(eps=config.eps, batch_size=config.batch_size, seed=config.seed, progress=False)
    attacks = evaluate(model, images, labels, attacks=("clean", "pgd-20"), **settings).attacks
    return [attacks["clean"].accuracy, attacks["pgd-20"].accuracy, attacks["pgd-20"].unsearched]


def _refuse_others(config: CurvesConfig, runs: Sequence[Run]) -> None:
    """Runs beside which the published curves say nothing."""
    for one in runs:
        eps = config.eps if config.judge else one.config.eval_eps
        if not comparable(one.config.dataset, parse_eps(eps)):
            what = f"{one.name} is of {one.config.dataset}, judged within {eps}"
            raise UserError(f"the published curves are of cifar10 within 8/255, but {what}: leave --published out")


def measure(config: CurvesConfig) -> dict:
    """The numbers: accuracies are fractions, epochs count from 1.

    `runs`: for each run the accuracies of its epochs, `best` ({epoch, value}; the first one where several are equal),
    `last`, `drop` = best - last, and the epochs that the run itself called collapsed; whether it is `finished`, and its
    `of_epochs`; judged anew, also `no_gradient`, how many images of each epoch stand because there was no gradient to
    follow. `methods`: for each label `seeds`, and of best, last and drop {mean, min, max} over them.

    Raises:
        UserError: a run that is not finished (without unfinished), kept no weights (judge), or has nothing recorded;
            one of other data or within another radius (published).
    """
    groups = group_runs(open_runs(config.runs, weights=config.judge, unfinished=config.unfinished))
    opened = [one for mine in groups.values() for one in mine]  # a method's seeds in a row
    if config.published:
        _refuse_others(config, opened)
    labels = [label for label, mine in groups.items() for _ in mine]
    prefer = "val_pgd20" if config.published else "probe_pgd10"  # the published curves are PGD-20
    name, found = judged(config, opened) if config.judge else recorded(opened, prefer)
    runs = [
        {"name": one.name, "method": label, "seed": one.config.seed, **values, **_best_and_last(values)}
        | {"collapsed_epochs": one.collapsed_epochs, "finished": one.finished, "of_epochs": one.config.epochs}
        for one, label, values in zip(opened, labels, found, strict=True)
    ]
    return {
        "measure": name,
        "dataset": opened[0].config.dataset,
        "eps": config.eps if config.judge else sorted({one.config.eval_eps for one in opened}),
        "runs": runs,
        "methods": {label: _summary([run for run in runs if run["method"] == label]) for label in groups},
        "published": _published({one.method for one in opened}) if config.published else None,
    }


def _best_and_last(values: dict) -> dict:
    robust = values["robust"]
    at = max(range(len(robust)), key=robust.__getitem__)
    best = {"epoch": values["epochs"][at], "value": robust[at]}
    return {"best": best, "last": robust[-1], "drop": robust[at] - robust[-1]}


def _summary(runs: list[dict]) -> dict:
    columns = {"best": [run["best"]["value"] for run in runs]}
    columns |= {key: [run[key] for run in runs] for key in ("last", "drop")}
    spread = {key: {"mean": fmean(v), "min": min(v), "max": max(v)} for key, v in columns.items()}
    return {"seeds": len(runs), **spread}


def _published(methods: set[str]) -> dict:
    """method -> {epochs, robust}: PGD-20 accuracy at full size, read off the published figures (+-0.005)."""
    found = {}
    for method, (entry, epochs, robust) in _PUBLISHED.items():
        if method in methods or method in _ALWAYS:
            curve = published(entry)
            found[method] = {"epochs": curve[epochs], "robust": curve[robust]}
    return found


# ---- command


def describe(label: str, summary: dict) -> str:
    """One line for a method: mean and range over the seeds, in percent."""

    def words(key: str) -> str:
        mean, low, high = (f"{summary[key][part]:.1%}" for part in ("mean", "min", "max"))
        return f"{key} {mean} [{low}, {high}]" if summary["seeds"] > 1 else f"{key} {mean}"

    seeds = f"{summary['seeds']} seed" + ("s" if summary["seeds"] > 1 else "")
    return f"{label}, {seeds}: {words('best')}, {words('last')}, {words('drop')}"


def run(config: CurvesConfig) -> None:
    """Measure, draw, write curves.{json,png,svg} under `config.out`, and print a line for each method.

    Raises:
        UserError: settings, runs or data that make no sense (one line says what to do).
    """
    config.check()
    output.check(config.out, "curves")
    numbers = measure(config)
    for label, summary in numbers["methods"].items():
        print(describe(label, summary))
    for one in numbers["runs"]:
        epochs = [f"epoch {epoch}" for epoch in one["epochs"]]
        output.say_blind(one["name"], dict(zip(epochs, one.get("no_gradient", []), strict=False)), one["images"])
    for path in output.save(config.out, "curves", numbers, lambda: draw(numbers)):
        print(path)
