"""Robust accuracy over the epochs: its best, its last, and how much was lost between them, over several seeds."""

import json
from collections.abc import Sequence
from importlib.resources import files
from statistics import fmean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from apart_fast.analysis import output
from apart_fast.analysis.cache import ResultCache, result_key
from apart_fast.analysis.groups import group_colours, group_runs
from apart_fast.analysis.series import Series, judged_data, open_series
from apart_fast.analysis.settings import CurvesConfig
from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation.judge import evaluate
from apart_fast.loaders import fingerprint
from apart_fast.report.pictures import points
from apart_fast.units import parse_eps

# measure -> (what the axis says, the setting of a run that holds its number of images)
_RECORDED = {
    "val_pgd20": ("PGD-20 accuracy", "val_images"),
    "probe_pgd10": ("PGD-10 accuracy", "probe_images"),
}
_PUBLISHED = {"APART": "apart", "PGD10": "pgd-10"}  # name in published.json -> method
_FAINT = 0.45


# ---- numbers


def recorded(series: Sequence[Series]) -> tuple[str, list[dict]]:
    """(measure, for each run its `epochs`, `robust` accuracies and number of `images`), as the runs recorded them.

    The measure is one for all the runs: validation under PGD-20 where every epoch has it, else the probe under PGD-10,
    else validation under PGD-20 at the epochs that have it. Also `clean_epochs` and `clean`: validation.

    Raises:
        UserError: the runs have no measure in common.
    """
    if all(0 < len(one.records) == len(points(one.records, "val_pgd20")) for one in series):
        measure = "val_pgd20"
    else:
        common = [m for m in ("probe_pgd10", "val_pgd20") if all(points(one.records, m) for one in series)]
        if not common:
            raise UserError("the runs recorded no robust accuracy that they have in common: add --judge")
        measure = common[0]
    return measure, [_record(one, measure) for one in series]


def _record(one: Series, measure: str) -> dict:
    images = one.config.val_images
    if measure == "probe_pgd10":
        images = min(images, one.config.probe_images)
    epochs, robust = _column(one.records, measure)
    clean_epochs, clean = _column(one.records, "val_clean")
    return {"images": images, "epochs": epochs, "robust": robust, "clean_epochs": clean_epochs, "clean": clean}


def _column(records: list[dict], key: str) -> tuple[list[int], list[float]]:
    found = points(records, key)
    return [epoch for epoch, _ in found], [value for _, value in found]


def judged(config: CurvesConfig, series: Sequence[Series]) -> tuple[str, list[dict]]:
    """Like `recorded`, judged anew: every kept checkpoint on `config.images` test images.

    Results are kept in curves-cache.json under `config.out`: a stopped call goes on where it was.

    Raises:
        UserError: no data, or a damaged checkpoint.
    """
    device, (_, split) = pick_device(config.device), judged_data(config, series)
    cache = ResultCache(config.out / "curves-cache.json")
    settings = {"images": fingerprint(split), "eps": parse_eps(config.eps), "seed": config.seed, "steps": 20}
    found = []
    total = sum(len(one.weights) for one in series)
    with tqdm(total=total, desc="judging", unit="epoch", disable=None if config.progress else True) as bar:
        for one in series:
            pairs = []
            for epoch, file in one.weights.items():
                key = result_key(file, settings)
                pair = cache.get(key)
                if not _is_pair(pair):
                    pair = _judge(config, one.model(epoch, device), split.images, split.labels)
                    cache.put(key, pair)
                pairs.append(pair)
                bar.update()
            epochs = list(one.weights)
            clean, robust = (list(column) for column in zip(*pairs, strict=True))
            found.append(
                {"images": len(split), "epochs": epochs, "robust": robust, "clean_epochs": epochs, "clean": clean}
            )
    return "test_pgd20", found


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)


def _judge(config: CurvesConfig, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """[clean, PGD-20 accuracy]"""
    settings = dict(eps=config.eps, batch_size=config.batch_size, seed=config.seed, progress=False)
    attacks = evaluate(model, images, labels, attacks=("clean", "pgd-20"), **settings).attacks
    return [attacks["clean"].accuracy, attacks["pgd-20"].accuracy]


def measure(config: CurvesConfig) -> dict:
    """The numbers: accuracies are fractions, epochs count from 1.

    `runs`: for each run the accuracies of its epochs, `best` ({epoch, value}; the first one where several are equal),
    `last`, `drop` = best - last, and the epochs that the run itself called collapsed. `methods`: for each label
    `seeds`, and of best, last and drop {mean, min, max} over them.

    Raises:
        UserError: a run that is not finished, kept no weights (judge), or has nothing recorded.
    """
    series = open_series(config.runs, weights=config.judge)
    groups = group_runs(series)
    series = [one for runs in groups.values() for one in runs]  # a method's seeds in a row
    labels = [label for label, runs in groups.items() for _ in runs]
    name, found = judged(config, series) if config.judge else recorded(series)
    runs = [
        {"name": one.name, "method": label, "seed": one.config.seed, **values, **_best_and_last(values)}
        | {"collapsed_epochs": [r["epoch"] for r in one.records if r.get("collapsed")]}
        for one, label, values in zip(series, labels, found, strict=True)
    ]
    return {
        "measure": name,
        "dataset": series[0].config.dataset,
        "eps": config.eps if config.judge else sorted({one.config.eval_eps for one in series}),
        "runs": runs,
        "methods": {label: _summary([run for run in runs if run["method"] == label]) for label in groups},
        "published": _published() if config.published else None,
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


def _published() -> dict:
    """method -> {epochs, robust}: PGD-20 accuracy at full size, read off the published figure (+-0.004)."""
    curve = json.loads(files("apart_fast.analysis").joinpath("published.json").read_text())["pgd_curve"]
    return {method: {"epochs": curve["plotted_index"], "robust": curve[name]} for name, method in _PUBLISHED.items()}


# ---- picture


def draw(numbers: dict) -> Figure:
    """The figure of what `measure` returned: curves (mean, range over seeds), and best and last of every seed."""
    methods = numbers["methods"]
    colours = group_colours(list(methods))
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    over_epochs, ends = figure.subplots(1, 2, width_ratios=(1.35, 1))
    for label in methods:
        _draw_curve(over_epochs, _runs_of(numbers, label), label, colours[label])
    longest = max(epoch for run in numbers["runs"] for epoch in run["epochs"])
    for method, curve in (numbers["published"] or {}).items():
        _draw_published(over_epochs, method, curve, longest, colours.get(method, "0.3"))
    what = _axis_label(numbers)
    over_epochs.set(xlabel="epoch", ylabel=what, ylim=(-1, None), title="robust accuracy (mean and range over seeds)")
    over_epochs.set_xlim(1 - 0.02 * longest, longest * 1.02)
    over_epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
    over_epochs.grid(alpha=0.3)
    _draw_ends(ends, numbers, colours)
    ends.set(xlabel=what, title="best (open) and last epoch (filled)")
    entries = len(over_epochs.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower center", ncols=min(entries, 4), frameon=False, fontsize=9)
    return figure


def _runs_of(numbers: dict, label: str) -> list[dict]:
    return [run for run in numbers["runs"] if run["method"] == label]


def _axis_label(numbers: dict) -> str:
    part = "test" if numbers["measure"] == "test_pgd20" else "validation"
    what = _RECORDED.get(numbers["measure"], _RECORDED["val_pgd20"])[0]
    images = {run["images"] for run in numbers["runs"]}
    return f"{what} on {images.pop():,} {part} images (%)" if len(images) == 1 else f"{what}, {part} images (%)"


def _draw_curve(axes: Axes, runs: list[dict], label: str, colour: str) -> None:
    by_epoch = [dict(zip(run["epochs"], run["robust"], strict=True)) for run in runs]
    epochs = [epoch for epoch in runs[0]["epochs"] if all(epoch in values for values in by_epoch)]
    rows = [[100 * values[epoch] for values in by_epoch] for epoch in epochs]
    name = f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label
    axes.plot(epochs, [fmean(row) for row in rows], ".-", color=colour, label=name, linewidth=1.8, markersize=4)
    if len(runs) > 1:
        axes.fill_between(
            epochs, [min(row) for row in rows], [max(row) for row in rows], color=colour, alpha=0.18, lw=0
        )
    for run, values in zip(runs, by_epoch, strict=True):
        best = run["best"]["epoch"], 100 * run["best"]["value"]
        axes.plot(*best, "o", markersize=4.5, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.3)
        if len(runs) > 1:
            axes.plot(values.keys(), [100 * value for value in values.values()], color=colour, alpha=_FAINT, lw=0.6)


def _draw_published(axes: Axes, method: str, curve: dict, longest: int, colour: str) -> None:
    points = [(e, 100 * v) for e, v in zip(curve["epochs"], curve["robust"], strict=True) if e <= longest]
    label = f"{method}, published, full size"
    axes.plot(*zip(*points, strict=True), ":", color=colour, alpha=_FAINT, linewidth=1.8, label=label, zorder=1)


def _draw_ends(axes: Axes, numbers: dict, colours: dict[str, str]) -> None:
    methods = numbers["methods"]
    for row, label in enumerate(methods):
        runs, colour = _runs_of(numbers, label), colours[label]
        for i, run in enumerate(runs):
            y = row + 0.44 * ((i + 0.5) / len(runs) - 0.5)
            best, last = 100 * run["best"]["value"], 100 * run["last"]
            arrow = dict(arrowstyle="-|>", color=colour, alpha=0.6, linewidth=1.2, shrinkA=3, shrinkB=2)
            if best - last > 0.5:  # percent: shorter than its own head
                axes.annotate("", (last, y), (best, y), arrowprops=arrow)
            axes.plot(best, y, "o", markersize=7, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.5)
            axes.plot(last, y, "o", markersize=4.5, color=colour)
        axes.text(1.02, row, _drop_text(methods[label]), transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.text(1.02, 1.01, "drop (points)", transform=axes.transAxes, va="bottom", fontsize=9)
    axes.set_yticks(range(len(methods)), list(methods))
    axes.set(ylim=(len(methods) - 0.5, -0.5))
    highest = max(run["best"]["value"] for run in numbers["runs"])
    axes.set_xlim(-2, max(5.0, 108 * highest))
    axes.grid(axis="x", alpha=0.3)


def _drop_text(summary: dict) -> str:
    drop = {key: 100 * value for key, value in summary["drop"].items()}
    if summary["seeds"] == 1:
        return f"{drop['mean']:.1f}"
    return f"{drop['mean']:.1f} ({drop['min']:.1f} to {drop['max']:.1f})"


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
    numbers = measure(config)
    for label, summary in numbers["methods"].items():
        print(describe(label, summary))
    for path in output.save(config.out, "curves", numbers, draw(numbers)):
        print(path)
